"""OpenEnv's own client drives our environments; what its protocol does not know is refused."""

import importlib
import importlib.util
import json
import sys
import types

import pytest

from stepagent import envs
from stepagent.envs.serve.openenv_http import SCHEMA
from tests.envs.serve.faulty import ID as FAULTY
from tests.envs.serve.faulty import FaultyEnv
from tests.envs.serve.servers import Running, wait_until

GUESS = "tests.envs.guess:tests/Guess-v0"
ALFWORLD = "stepagent/ALFWorld-v0"


@pytest.fixture(scope="module")
def client():
    """`openenv.core.GenericEnvClient`.

    Importing `openenv.core` also imports its server and with that a web interface, an MCP framework
    and some fifty packages more. Its client needs none of them: where they are not installed, the
    package's `__init__` is left out and the client's modules are imported as they are.
    """
    pytest.importorskip("openenv", reason="pip install --no-deps openenv")
    if importlib.util.find_spec("fastmcp") is None:
        package = types.ModuleType("openenv.core")
        (home,) = importlib.import_module("openenv").__path__
        package.__path__ = [f"{home}/core"]
        sys.modules["openenv.core"] = package
    return importlib.import_module("openenv.core.generic_client").GenericEnvClient


@pytest.fixture(scope="module")
def server():
    with Running(GUESS, ALFWORLD, FAULTY, step_seconds=1.5, max_sessions=4) as running:
        yield running


def test_an_episode_over_openenv_is_the_environments_own(server, client):
    here = envs.make(ALFWORLD, split="dev")
    text, info = here.reset(seed=3)
    plan = here.expert_plan()
    with client(base_url=f"{server.url}/{ALFWORLD}").sync() as there:
        result = there.reset(seed=3, env_args={"split": "dev"}, episode_id="mine")
        assert (result.reward, result.done) == (None, False)
        assert result.observation == {"text": text, "truncated": False, **info}
        total = 0.0
        for thought, action in plan:
            result = there.step({"action": f"Thought: {thought}\nAction: {action}"})
            text, reward, done, truncated, info = here.step(action)
            assert result.observation == {"text": text, "truncated": truncated, **info}
            assert (result.reward, result.done) == (reward, done or truncated)
            total += result.reward
        assert result.done
        assert total == info["score"] == 1.0
        state = there.state()
        assert state == {
            "episode_id": "mine",
            "step_count": len(plan),
            "task_id": info["task_id"],
            "score": 1.0,
        }
        assert server.sessions.count == 1
    wait_until(lambda: server.sessions.count == 0)


def test_the_first_environment_stands_at_the_root(server, client):
    with client(base_url=server.url).sync() as there:
        there.reset(seed=0, task_id="small/0")
        assert there.step({"message": "9"}).observation["text"] == "Lower."
        for wrong in ({"action": 7}, {"act": "x"}, {}):
            with pytest.raises(RuntimeError, match="VALIDATION_ERROR"):
                there.step(wrong)
        with pytest.raises(RuntimeError, match=r"no task 'nope'.*EXECUTION_ERROR"):
            there.reset(task_id="nope")
        assert there.reset(seed=0, task_id="small/0").observation["task_id"] == "small/0"


def test_errors_of_environments_come_as_openenv_errors(server, client):
    with client(base_url=f"{server.url}/tests/Faulty-v0").sync() as there:
        with pytest.raises(RuntimeError, match="reset"):
            there.step({"action": "a"})
        there.reset()
        with pytest.raises(RuntimeError, match=r"planted.*EXECUTION_ERROR"):
            there.step({"action": "raise"})
        there.reset()
        with pytest.raises(RuntimeError, match="took longer"):
            there.step({"action": "sleep 2"})
        assert there.reset().observation["text"].startswith("train/")  # in a new session
        assert there.step({"action": "a"}).observation["text"] == "step 1"
    unknown = client(base_url=f"{server.url}/stepagent/Chess-v0").sync()
    with unknown, pytest.raises(RuntimeError, match="no environment"):
        unknown.reset()
    wait_until(lambda: not FaultyEnv.open_now)


def test_a_client_that_vanishes_leaves_nothing(server, client):
    vanishing = client(base_url=f"{server.url}/tests/Faulty-v0").sync()
    vanishing.connect()
    vanishing.reset()
    vanishing._loop.call_soon_threadsafe(vanishing.async_client._ws.transport.abort)
    wait_until(lambda: not FaultyEnv.open_now and server.sessions.count == 0)
    assert not FaultyEnv.open_now
    vanishing._stop_loop()


def test_the_limit_of_sessions_holds_here_too(server, client):
    opened = [client(base_url=server.url).sync() for _ in range(5)]
    for one in opened:
        one.connect()
    for one in opened[:4]:
        one.reset()
    with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
        opened[4].reset()
    for one in opened:
        one.close()


def test_a_token_may_stand_in_the_url(client):
    with Running(GUESS, token="secret") as server:
        with client(base_url=f"ws://any:secret@127.0.0.1:{server.port}").sync() as there:
            assert there.reset(seed=0).observation["text"]
        for base in (f"ws://any:wrong@127.0.0.1:{server.port}", server.url):
            with pytest.raises(ConnectionError):
                client(base_url=base).sync().connect()


def test_broken_messages_are_refused_and_the_talk_goes_on(server):
    from websockets.sync.client import connect

    wait_until(lambda: server.sessions.count == 0)
    with connect(f"ws://127.0.0.1:{server.port}/ws") as wire:

        def said(message):
            wire.send(message if isinstance(message, str | bytes) else json.dumps(message))
            return json.loads(wire.recv())

        assert said({"type": "reset"})["type"] == "observation"
        for broken in ("{", b"\x80", b'{"type": "state"}', b"", "[" * 100_000, '{"a":' * 100_000):
            answer = said(broken)
            assert (answer["type"], answer["data"]["code"]) == ("error", "INVALID_JSON")
        assert said({"type": "step", "data": {"action": "1"}})["type"] == "observation"
        assert server.sessions.count == 1
        assert said("[]")["data"]["code"] == "VALIDATION_ERROR"
        assert said({"type": "fly"})["data"]["code"] == "UNKNOWN_TYPE"
        assert said({"type": "reset", "data": []})["type"] in ("error", "observation")
        assert said({"type": "reset", "data": {"seed": "x"}})["data"]["code"] == "VALIDATION_ERROR"
        assert said({"type": "reset"})["type"] == "observation"
    wait_until(lambda: server.sessions.count == 0)  # a real end is seen as before


def test_a_task_is_chosen_by_split_and_index(server, client):
    tasks = envs.make(ALFWORLD, split="dev").tasks
    with client(base_url=f"{server.url}/{ALFWORLD}").sync() as there:
        observation = there.reset(split="dev", index=1).observation
        assert (observation["split"], observation["task_id"]) == ("dev", tasks[1])
        with pytest.raises(RuntimeError, match=rf"has {len(tasks)} tasks.*EXECUTION_ERROR"):
            there.reset(split="dev", index=len(tasks))
        for wrong in ({"index": "1"}, {"env_args": []}, {"seed": "x"}):
            with pytest.raises(RuntimeError, match="VALIDATION_ERROR"):
                there.reset(**wrong)
        assert there.reset(split="test", index=0).observation["split"] == "test"


@pytest.mark.parametrize(("prefix", "env_id"), [("", GUESS), (f"/{ALFWORLD}", ALFWORLD)])
def test_every_environment_describes_itself(server, prefix, env_id):
    prompt = envs.make(env_id).prompt
    assert server.ask("GET", f"{prefix}/health") == (200, {"status": "healthy"})
    status, schema = server.ask("GET", f"{prefix}/schema")
    assert status == 200
    assert schema["action"].pop("description") == prompt.instruction
    assert schema == SCHEMA
    assert server.ask("GET", f"{prefix}/metadata")[1]["name"] == env_id.rpartition(":")[2]
    assert server.ask("GET", f"{prefix}/openapi.json")[1]["info"]["version"]


def test_the_task_api_lists_our_splits(server):
    assert ALFWORLD in server.ask("GET", "/list_environments")[1]
    assert server.ask("GET", f"/{ALFWORLD}/splits")[1] == [
        {"name": "train", "type": "train"},
        {"name": "dev", "type": "validation"},
        {"name": "test", "type": "test"},
    ]
    tasks = envs.make(ALFWORLD, split="test").tasks
    listed = [{"id": id, "index": index, "split": "test"} for index, id in enumerate(tasks)]

    def ask(route, **body):
        return server.ask("POST", f"/{ALFWORLD}/{route}", {"split": "test", **body})[1]

    assert ask("num_tasks") == {"num_tasks": len(tasks)}
    assert ask("tasks") == {"tasks": listed, "env_name": ALFWORLD}
    assert ask("task", index=2) == {"task": listed[2]}
    assert ask("task_range", start=1, stop=3) == {"tasks": listed[1:3]}
    assert ask("task_range") == {"tasks": listed}
    wait_until(lambda: server.sessions.count == 0)


def test_the_task_api_refuses_what_there_is_not(server):
    for route, body, status, message in (
        ("task", {"split": "test", "index": -1}, 400, "index"),
        ("task", {"split": "test"}, 400, "index"),
        ("task", {"split": "test", "index": "1"}, 422, "whole number"),
        ("tasks", {"split": "validation"}, 422, "train, dev, test"),
        ("tasks", [], 422, "split"),
        ("tasks", "{", 400, "JSON"),
    ):
        answered, answer = server.ask("POST", f"/{ALFWORLD}/{route}", body)
        assert answered == status
        assert message in answer["error"]["message"]
    for method, route in (("GET", "schema"), ("GET", "health"), ("GET", "splits")):
        assert server.ask(method, f"/stepagent/Chess-v0/{route}")[0] == 404


def test_splits_that_clients_may_not_choose_are_not_listed():
    fixed = {GUESS: {"split": "dev"}}
    for options, names in (({"env_args": fixed}, ["dev"]), ({"client_args": []}, ["train"])):
        with Running(GUESS, **options) as server:
            assert [split["name"] for split in server.ask("GET", "/splits")[1]] == names
            assert server.ask("POST", "/num_tasks", {"split": names[0]})[0] == 200
            assert server.ask("POST", "/num_tasks", {"split": "test"})[0] == 422


def test_mcp_lists_no_tools_and_says_where_to_play(server):
    def call(body):
        status, answer = server.ask("POST", "/mcp", body)
        assert (status, answer["jsonrpc"]) == (200, "2.0")
        return answer

    assert call({"jsonrpc": "2.0", "id": 3, "method": "tools/list"})["result"] == {"tools": []}
    unknown = call({"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {"name": "x"}})
    assert (unknown["id"], unknown["error"]["code"]) == (4, -32601)
    assert "/ws" in unknown["error"]["message"]
    assert call({})["error"]["code"] == -32600
    assert call("{")["error"]["code"] == -32700
