"""OpenEnv's own client drives our environments; what its protocol does not know is refused."""

import importlib
import importlib.util
import json
import sys
import types

import pytest

from stepagent import envs
from stepagent.envs.serve.openenv import SCHEMA
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
    pytest.importorskip("openenv", reason="pip install --no-deps openenv-core")
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


def test_the_rest_of_openenv(server):
    assert server.ask("GET", "/health") == (200, {"status": "healthy"})
    assert server.ask("GET", "/schema") == (200, SCHEMA)
    assert server.ask("GET", "/metadata")[1]["name"] == "tests/Guess-v0"
