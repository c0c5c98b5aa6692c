import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import psutil
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.scienceworld import data, jvm
from stepagent.envs.scienceworld.gateway import SimulatorError

ID = "stepagent/ScienceWorld-v0"
SHORT = "lifespan-longest-lived,find-plant,power-component"


@pytest.fixture
def env():
    environment = envs.make(ID, split="test", tasks=SHORT)
    yield environment
    environment.close()


def _java_children():
    return [p for p in psutil.Process().children(recursive=True) if p.name() == "java"]


@pytest.mark.parametrize("promise", check.CHECKS, ids=lambda p: p.__name__)
def test_contract(promise):
    promise(lambda **more: envs.make(ID, **{"tasks": SHORT, **more}))


def test_what_the_prompt_promises_is_in_force(env):
    observation, _ = env.reset(seed=0, options={"task_id": "find-plant/226"})
    assert "find a(n) plant" in observation
    observation, *_, info = env.step("teleport to kitchen")
    assert observation == "You teleport to the kitchen."
    assert info["valid"]
    observation, *_ = env.step("look around")
    assert "fridge. The fridge door is open" in observation
    observation, *_, info = env.step("open fridge")
    assert "already open" in observation
    assert not info["valid"]


def test_an_opening_score_comes_with_the_first_action():
    env = envs.make(ID, split="test", tasks="chemistry-mix-paint-secondary-color")
    _, info = env.reset(seed=0, options={"task_id": "chemistry-mix-paint-secondary-color/27"})
    assert (info["score"], info["metrics"]) == (0, {})
    _, reward, *_ = env.step("Thought: an action that is missing opens nothing")
    assert reward == 0
    _, reward, *_, info = env.step("inventory")
    assert reward == info["score"] == pytest.approx(0.2)
    assert info["metrics"] == {"raw_score": 20, "best_raw_score": 20}
    _, reward, *_, info = env.step("teleport to foundry")
    assert reward == pytest.approx(0.1)
    assert info["metrics"]["raw_score"] == 30
    env.close()


def test_a_wrong_focus_ends_the_episode_with_what_was_reached(env):
    env.reset(seed=0, options={"task_id": "find-plant/226"})
    env.step("teleport to kitchen")
    _, _, terminated, _, info = env.step("focus on fridge")
    assert terminated
    assert info["metrics"]["raw_score"] == -100
    assert 0 <= info["score"] < 1
    assert not info["success"]


def test_questions_take_a_number(env):
    env.reset(seed=0, options={"task_id": "find-plant/226"})
    env.step("teleport to kitchen")
    for action in (
        "pick up chair",
        "focus on door",
        "move cup to table",
        "open door",
        "look at door",
    ):
        observation, *_, info = env.step(action)
        if observation.startswith("Ambiguous request"):
            break
    assert observation.startswith("Ambiguous request"), observation
    assert info["valid"]
    _, *_, info = env.step("0: the first one")
    assert info["valid"]


def test_admissible_actions_can_be_carried_out(env):
    env.reset(seed=0, options={"task_id": "lifespan-longest-lived/93"})
    actions = env.admissible_actions()
    assert "look around" in actions
    assert actions == sorted(set(actions))


def test_wrong_arguments_list_what_exists():
    with pytest.raises(ValueError, match="find-plant"):
        envs.make(ID, tasks="find-plants")
    with pytest.raises(ValueError, match="paper"):
        envs.make(ID, task_set="some")
    with pytest.raises(ValueError, match="teleportAction"):
        envs.make(ID, simplifications="easy")


def test_splits_are_the_simulators_and_share_nothing():
    simulator = jvm.Simulator()
    assert set(simulator.task_names()) == set(data.TASKS)
    for task in ("boil", "find-plant", "mendelian-genetics-unknown-plant"):
        simulator.load(task, 0, data.default_simplifications(task))
        for split in ("train", "dev", "test"):
            assert simulator.variations(split) == list(data.TASKS[task].of(split))
    simulator.close()
    assert sum(v.end for v in data.TASKS.values()) == 7207
    for task_set, sizes in (("paper", (1408, 199, 211)), ("all", None)):
        parts = [set(data.task_ids(s, task_set)) for s in ("train", "dev", "test")]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        if sizes:
            assert tuple(map(len, parts)) == sizes
        else:
            assert sum(map(len, parts)) == 7207


@pytest.mark.real_data
def test_the_papers_test_set_is_etos():
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no ETO files to compare with")
    with open(f"{folder}/scienceworld/eto_test_indices.json") as file:
        theirs = json.load(file)
    per_task: dict[str, list[int]] = {}
    for name, variation in theirs:
        per_task.setdefault(name, []).append(variation)
    ours: dict[str, list[int]] = {}
    for task_id in data.task_ids("test", "paper"):
        task, variation = task_id.split("/")
        ours.setdefault(task, []).append(int(variation))
    assert sorted(map(sorted, per_task.values())) == sorted(map(sorted, ours.values()))
    with open(f"{folder}/scienceworld/eto_max_steps.json") as file:
        assert sorted(json.load(file).values()) == sorted(data.step_limit(t) for t in ours)


WALK = """
import sys, envs
env = envs.make("stepagent/ScienceWorld-v0", split="test", tasks="find-animal,boil")
for task in ("find-animal/228", "boil/21"):
    print(env.reset(seed=4, options={"task_id": task})[0])
    for action in ("teleport to outside", "look around", "wait", "look around", "inventory",
                   "teleport to kitchen", "look around", "open cupboard", "pick up thermometer"):
        print(env.step(action)[0])
"""


def test_the_same_text_in_every_process():
    texts = {
        subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(texts) == 1
    assert len(texts.pop()) > 1000


def test_many_environments_share_one_java_process():
    environments = [envs.make(ID, split="test", tasks=SHORT) for _ in range(8)]

    def play(env):
        env.reset(seed=0, options={"task_id": "lifespan-longest-lived/93"})
        for _, action in env.expert_plan():
            info = env.step(action)[-1]
        return info["score"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, environments)) == [1.0] * 8
    assert len(_java_children()) == 1
    for env in environments:
        env.close()


def test_a_dead_java_process_costs_one_episode(env):
    env.reset(seed=0)
    for java in _java_children():
        java.kill()
        java.wait(10)
    with pytest.raises(SimulatorError, match=r"reset\(\)"):
        env.step("look around")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("look around")
    observation, _ = env.reset(seed=0)
    assert "Your task" in observation


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_no_java_process_stays_behind(end):
    code = (
        "import time, psutil; from stepagent import make;"
        "e = make('stepagent/ScienceWorld-v0'); e.reset(seed=0);"
        "print(psutil.Process().children(recursive=True)[0].pid, flush=True);"
        + ("time.sleep(60)" if end == "kill" else "")
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    if end == "kill":
        os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
    assert errors == ""


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode):
    vector = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, tasks=SHORT)
    texts, _ = vector.reset(seed=0)
    assert all("Your task" in text for text in texts)
    texts, *_ = vector.step(["look around", "inventory"])
    assert len(texts) == 2
    vector.close()


@pytest.mark.slow
def test_ten_thousand_hostile_actions():
    env = envs.make(ID, split="train", tasks=SHORT)
    env.reset(seed=0)
    for action in check.hostile_actions(10_000, seed=1):
        observation, _, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert 0 <= info["score"] <= 1
        if terminated or truncated:
            env.reset()
    env.close()


@pytest.mark.parametrize("answers", range(6))
def test_ctrl_c_during_a_call_is_no_error_of_the_simulator(env, answers, monkeypatch):
    """Listing actions takes six calls; whichever is interrupted, nothing hides that."""
    env.reset(seed=0, options={"task_id": "find-plant/226"})
    connection = env.unwrapped._simulator._connection
    read_line, read = connection._read_line, []

    def interrupted():
        read.append(None)
        if len(read) > answers:
            raise KeyboardInterrupt
        return read_line()

    monkeypatch.setattr(connection, "_read_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.unwrapped.admissible_actions()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_waits_for_java(env):
    """Vectors of processes fork; the child drops its copy of the connection without a wait."""
    env.reset(seed=0, options={"task_id": "find-plant/226"})
    connection = env.unwrapped._simulator._connection
    call = threading.Thread(target=connection.call, args=("java.lang.Thread", "sleep", 3000))
    call.start()
    time.sleep(0.5)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join(60)
    exitcode = child.exitcode
    child.kill()
    call.join()
    assert exitcode == 0
