"""An environment on a server is the environment: same texts, rewards, infos, results, contract."""

import copy
import json
import os
import pickle

import gymnasium as gym
import numpy as np
import pytest

import stepagent
from stepagent import envs
from stepagent.envs import check
from stepagent.envs.remote import RemoteEnv, RemoteError, RemoteVectorEnv, ServerFull, ServerGone
from stepagent.envs.tools import call_of, write_call
from stepagent.eval import run as eval_run
from tests.envs.guess import GuessEnv
from tests.envs.serve.faulty import ID as FAULTY
from tests.envs.serve.servers import Running
from tests.toy_env import ID as TOY

GUESS = "tests.envs.guess:tests/Guess-v0"


@pytest.fixture(scope="module")
def server():
    with Running(GUESS, TOY, FAULTY, *envs.ENTRY_POINTS) as running:
        yield running
        assert running.sessions.count <= 6  # what a broken promise left open, none in a good run


@pytest.fixture(scope="module")
def second():
    with Running(GUESS, TOY) as running:
        yield running


def played(env, replies, seed=5):
    """Everything an episode shows."""
    shown = [env.reset(seed=seed)]
    for reply in replies:
        shown.append(env.step(reply))
        if shown[-1][2] or shown[-1][3]:
            break
    return shown


def test_functions_and_their_calls_are_the_same_elsewhere(server):
    for env_id in (GUESS, "stepagent/ALFWorld-v0"):
        here, there = gym.make(env_id), gym.make(env_id, url=server.url, split="train")
        assert there.unwrapped.tools == here.unwrapped.tools
        action = here.unwrapped.tools[0].form.format(action="3")
        calls = [call_of(here.unwrapped.tools, action), "<tool_call>{", write_call("fly", {})]
        assert played(there, calls) == played(here, calls)
        here.close()
        there.close()
    vector = gym.make_vec(GUESS, num_envs=2, url=server.url)
    vector.reset(seed=1)
    calls = (write_call("act", {"action": "1"}), write_call("fly", {}))
    texts, _, _, _, infos = vector.step(calls)
    assert [bool(valid) for valid in infos["valid"]] == [True, False]
    assert "The functions are: act(action)." in texts[1]
    vector.close()


def test_an_episode_is_the_same_elsewhere(server):
    replies = ["9", "Thought: hm\nAction: 1", "", "Action: Thought: x", "\ud800", "x" * 70_000, "3"]
    here, there = gym.make(GUESS), gym.make(GUESS, url=server.url, split="train")
    assert isinstance(there.unwrapped, RemoteEnv)
    assert played(there, replies) == played(here, replies)
    assert there.unwrapped.tasks == here.unwrapped.tasks
    assert there.unwrapped.expert_plan() == here.unwrapped.expert_plan()
    assert there.unwrapped.admissible_actions() == here.unwrapped.admissible_actions()
    assert there.unwrapped.prompt == here.unwrapped.prompt
    assert there.unwrapped.task_type == here.unwrapped.task_type
    assert there.unwrapped.step_limit("small/0") == 8
    for _ in range(3):  # without a seed, both go on from the last one
        assert there.reset() == here.reset()
    there.close()
    there.close()


def test_arguments_are_part_of_the_environment_and_where_it_runs_is_not(server):
    here = envs.make(TOY, size=4, split="test")
    there = envs.make(TOY, size=4, split="test", url=[server.url], patience=1)
    assert there.fingerprint() == here.fingerprint()
    assert (there.split, there.max_steps, len(there.tasks)) == ("test", None, 4)
    with pytest.raises(ValueError, match="plain data"):
        envs.make(TOY, size=object(), url=server.url)
    with pytest.raises(TypeError, match="colour"):
        envs.make(TOY, colour="red", url=server.url)
    with pytest.raises(NotImplementedError):
        envs.make(FAULTY, url=server.url).admissible_actions()
    there.close()


def test_the_server_knows_an_environment_by_the_id_it_was_registered_under(server):
    stepagent.register("tests/GuessAgain-v0", GuessEnv)  # the same class, which this server lacks
    try:
        with pytest.raises(RemoteError, match=r"no environment 'tests/GuessAgain-v0' here"):
            gym.make("tests/GuessAgain-v0", url=server.url)
    finally:
        del gym.registry["tests/GuessAgain-v0"]


def test_a_copied_or_pickled_spec_makes_the_environment_here_and_there(server):
    original = gym.spec("tests/Guess-v0")
    for spec in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert spec == original
        here, there = gym.make(spec), gym.make(spec, url=server.url)
        assert isinstance(there.unwrapped, RemoteEnv)
        assert there.reset(seed=2) == here.reset(seed=2)
        again = gym.make(there.spec)  # as made: on the server
        assert again.reset(seed=2) == here.reset(seed=2)
        for env in (there, again):
            env.close()


def test_only_stepagents_own_register_gives_an_environment_a_url(server):
    gym.register("tests/Plain-v0", entry_point=GuessEnv, disable_env_checker=True)
    try:
        assert envs.make("tests/Plain-v0").reset(seed=0)
        with pytest.raises(TypeError, match=r"takes split, .*register it by stepagent"):
            envs.make("tests/Plain-v0", url=server.url)
    finally:
        del gym.registry["tests/Plain-v0"]
    with pytest.raises(TypeError, match="'url'"):
        GuessEnv(url=server.url)


@pytest.mark.parametrize("env_id", [GUESS, *envs.ENTRY_POINTS])
def test_the_contract_holds_through_a_server(server, env_id):
    before = server.sessions.count
    assert check.check(env_id, url=server.url) == []
    assert server.sessions.count <= before + 1


def results(out, env_id, limit, env_args):
    """What `eval.run` writes, but for the seconds: lines in the order of tasks, and the summary."""
    options = ["--env", env_id, "--env-args", json.dumps(env_args), "--limit", str(limit)]
    assert eval_run.main([*options, "--agent", "random", "--workers", "3", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    for result in (*lines, summary):
        result.pop("seconds")
    return sorted(lines, key=lambda line: line["task_id"]), summary


def test_evaluation_through_servers_gives_the_same_results(server, second, tmp_path):
    here = results(tmp_path / "here", TOY, 8, {"size": 9})
    there = {"url": [server.url, second.url], "size": 9}
    assert results(tmp_path / "there", TOY, 8, there) == here


@pytest.mark.parametrize("env_id", envs.ENTRY_POINTS)
def test_evaluation_through_a_server_is_the_same_for_every_environment(server, env_id, tmp_path):
    here = results(tmp_path / "here", env_id, 3, {"max_steps": 6})
    there = {"url": server.url, "max_steps": 6}
    assert results(tmp_path / "there", env_id, 3, there) == here


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_vector_over_two_servers_is_gymnasiums(server, second, mode):
    mode = gym.vector.AutoresetMode[mode.upper()]
    here = gym.make_vec(TOY, num_envs=5, vector_kwargs={"autoreset_mode": mode})
    there = RemoteVectorEnv(TOY, 5, url=f"{server.url}, {second.url}", autoreset_mode=mode)
    assert {env.server.url for env in there.envs} == {server.url, second.url}
    rng = np.random.default_rng(0)
    for vector in (here, there):
        vector.action_space.seed(0)
    assert_same(there.reset(seed=3), here.reset(seed=3))
    for _ in range(14):
        actions = tuple(rng.choice(["add 1", "add 3", "nonsense"], size=5).tolist())
        assert_same(there.step(actions), here.step(actions))
    assert_same(there.reset(), here.reset())
    here.close()
    there.close()


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert_same(one.tolist(), other.tolist())
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_own_vectors_take_a_url(server, mode):
    vector = gym.make_vec(GUESS, num_envs=2, vectorization_mode=mode, url=server.url)
    here = gym.make_vec(GUESS, num_envs=2)
    assert tuple(vector.reset(seed=1)[0]) == tuple(here.reset(seed=1)[0])
    assert tuple(vector.step(("1", "2"))[0]) == tuple(here.step(("1", "2"))[0])
    vector.close()
    here.close()


def test_the_next_server_with_a_place_is_taken(second):
    with Running(GUESS, max_sessions=1) as small:
        both = [small.url, second.url]
        opened = [envs.make(GUESS, url=both, patience=0) for _ in range(4)]
        at = [env.server.url for env in opened]
        assert at.count(small.url) == 1
        with pytest.raises(ServerFull, match=r"all 1 sessions are taken \(--max-sessions\)"):
            envs.make(GUESS, url=small.url, patience=0)
        for env in opened:
            env.close()
        assert envs.make(GUESS, url=small.url, patience=2).reset(seed=0)


def test_wrong_urls_are_named():
    for url in ("localhost:8000", "ftp://x", ""):
        with pytest.raises(ValueError, match="http://"):
            envs.make(GUESS, url=[url])
    with pytest.raises(ValueError, match=r"url is \[7\]: its type must be"):
        envs.make(GUESS, url=[7])
    with pytest.raises(ServerGone, match="stepagent serve"):
        envs.make(GUESS, url="http://127.0.0.1:9", patience=0)


def test_the_light_import_stays_light():
    code = (
        "import sys, stepagent; heavy = ('fastapi', 'uvicorn', 'urllib3', 'stepagent.envs.remote');"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert os.popen(f'{gym_python()} -c "{code}"').read().strip() == "[]"


def gym_python():
    import sys

    return sys.executable
