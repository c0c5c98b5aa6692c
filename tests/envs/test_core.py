import time

import gymnasium as gym
import numpy as np
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.core import MAX_TEXT, FreeText, clip
from tests.envs.guess import GuessEnv

GUESS = "tests.envs.guess:tests/Guess-v0"


def test_contract_is_kept_by_the_example():
    assert check.check(GUESS) == []


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"list_tasks": lambda self: ["same/1"]}, "no task is in two splits"),
        ({"act": lambda self, action: int(action)}, "Nothing an agent types raises"),
        ({"expert_plan": lambda self: [("", "0")]}, "expert"),
        ({"begin": lambda self, t: str(time.perf_counter_ns())}, "depend on (task id, seed)"),
    ],
)
def test_checker_finds_what_breaks_the_contract(change, broken):
    kind = type("Broken", (GuessEnv,), change)
    gym.register("tests/Broken-v0", entry_point=kind, disable_env_checker=True)
    try:
        broken_promises = check.check("tests/Broken-v0")
    finally:
        del gym.registry["tests/Broken-v0"]
    assert any(broken in name for name, _ in broken_promises), broken_promises


def test_checker_command_line(capsys):
    assert check.main([GUESS]) == 0
    assert "promises kept" in capsys.readouterr().out
    assert check.main(["stepagent/Nowhere-v0"]) == 2
    assert "stepagent/ScienceWorld-v0" in capsys.readouterr().err


def test_same_task_and_seed_whether_drawn_or_given():
    env = envs.make(GUESS)
    _, info = env.reset(seed=11)
    secret = env.secret
    env.reset(seed=11, options={"task_id": info["task_id"]})
    assert env.secret == secret
    secrets = set()
    for seed in range(20):
        env.reset(seed=seed, options={"task_id": "large/0"})
        secrets.add(env.secret)
    assert len(secrets) > 3


def test_unseeded_resets_go_through_the_tasks():
    env = envs.make(GUESS)
    env.reset(seed=0)
    assert len({env.reset()[1]["task_id"] for _ in range(60)}) > 10


def test_wrong_names_list_what_exists():
    with pytest.raises(ValueError, match="ScienceWorld-v0"):
        envs.make("stepagent/WebSop-v0")
    with pytest.raises(ValueError, match="train, dev, test"):
        envs.make(GUESS, split="valid")
    with pytest.raises(ValueError, match="small/0"):
        envs.make(GUESS).reset(options={"task_id": "small/100"})  # a dev task in train
    env = envs.make(GUESS)
    env.reset()
    with pytest.raises(TypeError, match="str"):
        env.step(3)


@pytest.mark.parametrize(
    "env_id",
    ["", "a b", "../x:y", ".x:A-v0", ":x", "a:b:c", "no_such_module:A-v0", "x/", "A/B/C-v0"],
)
def test_malformed_ids_list_what_exists(env_id):
    with pytest.raises(ValueError, match=r"no environment .*stepagent/ScienceWorld-v0"):
        envs.make(env_id)


@pytest.mark.parametrize("env_id", ["ScienceWorld", "scienceworld-v0", "stepagent/SceinceWorld-v1"])
def test_an_id_that_is_nearly_right_gets_the_right_one(env_id):
    with pytest.raises(ValueError, match=r"Did you mean stepagent/ScienceWorld-v0\?"):
        envs.make(env_id)


@pytest.mark.parametrize(
    ("env_id", "more", "takes"),
    [
        (GUESS, {}, "split, max_steps, render_mode, url"),
        ("stepagent/HotpotQA-v0", {}, "split, data, corpus, lookup, sentences, sizes, "),
        ("stepagent/Mind2Web-v0", {}, "live, split, data, test_set, answers, html, "),
        ("stepagent/Mind2Web-v0", {"live": True}, r"live, .*browser, timeout, "),
    ],
)
def test_an_argument_that_no_environment_takes_lists_those_it_takes(env_id, more, takes):
    with pytest.raises(TypeError, match=f"no argument 'bogus': it takes {takes}"):
        envs.make(env_id, bogus=1, **more)


@pytest.mark.parametrize("task_id", [["small/0"], {}, 3, b"small/0"])
def test_task_ids_of_another_type_are_refused(task_id):
    with pytest.raises(ValueError, match="no task"):
        envs.make(GUESS).reset(options={"task_id": task_id})


def test_a_failing_world_ends_the_episode():
    env = envs.make(GUESS)
    env.reset(seed=0)
    env.act = lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        env.step("3")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("3")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode):
    vector = gym.make_vec(GUESS, num_envs=3, vectorization_mode=mode)
    try:
        texts, _ = vector.reset(seed=0)
        assert len(texts) == 3
        assert all("Guess the number" in text for text in texts)
        first_texts = texts
        texts, rewards, *_ = vector.step(["1", "no", "9"])
        assert texts[1] == "Say a number."
        assert texts[2] == "Lower."
        assert rewards.dtype == np.float64
        assert all("Guess the number" in text for text in first_texts), "an old observation changed"
    finally:
        vector.close()


def test_free_text_space():
    space = FreeText(seed=0)
    assert "é漢\n" in space
    assert 3 not in space
    assert "x" * (MAX_TEXT + 1) not in space
    assert space.sample() in space
    assert FreeText(seed=1).sample() == FreeText(seed=1).sample()
    assert space.from_jsonable(space.to_jsonable(["a"])) == ["a"]


def test_clip_makes_text_that_can_be_stored():
    assert clip("\ud800 x") == "? x"
    long = clip("é" * 200_000)
    assert len(long) == MAX_TEXT
    assert "200000 characters" in long


def test_importing_envs_is_light():
    import subprocess
    import sys

    code = (
        "import sys, time, envs; heavy = {'torch', 'transformers', 'py4j', 'scienceworld'};"
        "found = heavy & set(sys.modules); sys.exit(str(found) if found else 0"
        " if time.process_time() < 2 else 'too slow')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
