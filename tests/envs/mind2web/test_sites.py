import importlib.util
import json
import os
import shutil

import pytest

from stepagent import envs
from stepagent.envs.core import checksum
from stepagent.envs.mind2web import sites
from stepagent.envs.mind2web.records import Problems
from stepagent.envs.mind2web.sites.base import Move
from stepagent.envs.mind2web.sites.browser import Browser
from stepagent.envs.mind2web.sites.kinds import KINDS
from stepagent.errors import SetupError
from stepagent.optional import MissingPackage

ID = "stepagent/Mind2Web-v0"


def test_splits_are_by_site_and_test_is_of_other_trades():
    source = sites.BundledSites("cleaned", Problems())
    names = {s: {t.rsplit("/", 1)[0] for t in source.ids(s)} for s in envs.SPLITS}
    assert {s: len(names[s]) for s in names} == {"train": 48, "dev": 6, "test": 18}
    assert {s: len(source.ids(s)) for s in names} == {"train": 576, "dev": 48, "test": 144}
    assert not names["train"] & names["test"] | names["train"] & names["dev"]
    trades = {s: {sites.sites()[n][0].theme["subdomain"] for n in names[s]} for s in names}
    assert not trades["train"] & trades["test"] | trades["train"] & trades["dev"]
    kinds = {n.split("/")[0] for n in names["test"]}
    assert kinds == set(KINDS)


@pytest.mark.parametrize("name", sorted(sites.sites())[::6])
def test_gold_steps_lead_to_the_goal_and_others_do_not(name):
    """`record` plays each task's steps and raises where they do not do what is asked."""
    task = sites.record(f"{name}/0")
    assert 2 <= len(task["actions"]) <= 6
    assert len(task["action_reprs"]) == len(task["actions"])
    for action in task["actions"]:
        (positive,) = action["pos_candidates"]
        assert positive not in action["neg_candidates"]
        assert len(action["neg_candidates"]) >= 5  # distractors
    site, goal = sites.goal_of(f"{name}/0")
    browser = Browser(site)
    for move in goal.moves:
        if move.op != "SELECT":  # a task that leaves the lists as they are is not done
            browser.do(move)
    assert browser.state.get("done") != goal.done


def test_tasks_of_a_site_differ():
    for name in list(sites.sites())[::7]:
        goals = sites.goals(name)
        assert len({goal.instruction for goal in goals}) > len(goals) // 2
        assert len(set(map(repr, goals))) == len(goals)


def test_the_browser_says_what_a_page_lacks():
    browser = Browser(sites.sites()["shop/lumen-house"][0])
    with pytest.raises(LookupError, match="no element 'add'"):
        browser.do(Move("CLICK", "add"))
    browser.do(Move("CLICK", "g-lamps"))
    browser.do(Move("CLICK", "p-desk-lamp"))
    with pytest.raises(LookupError, match="no option 'mauve'"):
        browser.do(Move("SELECT", "option", "mauve"))


def test_pages_that_do_not_exist_are_harmless():
    for site, _ in list(sites.sites().values())[::9]:
        for path in ("/nowhere", "/item/x", "/day/9/z", "/p/", "/g", "//", "/<script>"):
            assert "<script>" not in site.page(path, {}, {})
            assert site.submit(path, {}, {}).startswith("/")


needs_browser = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or not shutil.which("chromium"),
    reason="live mode needs Playwright and a Chromium on the path",
)


def test_live_mode_plays_only_the_bundled_sites(tmp_path):
    with pytest.raises(ValueError, match="bundled"):
        envs.make(ID, live=True, data=tmp_path)


@needs_browser
@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_the_expert_reaches_the_goal_in_a_real_browser(answers, tmp_path):
    env = envs.make(ID, split="test", live=True, answers=answers, timeout=60)
    try:
        for kind in ("booking", "search", "settings") if answers == "direct" else ("calendar",):
            task_id = next(t for t in env.tasks if t.startswith(kind))
            observation, _ = env.reset(seed=0, options={"task_id": task_id})
            recorded = envs.make(ID, split="test", answers=answers)
            assert recorded.reset(seed=0, options={"task_id": task_id})[0] == observation
            plan = env.expert_plan()
            picture = tmp_path / "page.png"
            env._chromium.screenshot(picture)
            assert picture.read_bytes()[:4] == b"\x89PNG"
            for _, action in plan:
                *_, terminated, _, info = env.step(action)
                assert info["valid"]
            assert terminated
            assert info["success"]
            assert info["score"] == 1
    finally:
        env.close()


@needs_browser
def test_a_wrong_way_in_a_real_browser():
    env = envs.make(ID, split="test", live=True, timeout=60)
    try:
        task_id = next(t for t in env.tasks if t.startswith("support"))
        first, _ = env.reset(seed=0, options={"task_id": task_id})
        observation, reward, *_, info = env.step("TYPE [0] [x]")
        assert observation.startswith("That could not be done")
        assert not info["valid"]
        assert reward == 0
        observation, *_, info = env.step("CLICK [0]")  # leads elsewhere, and stays there
        assert info["valid"]
        assert "-> CLICK" in observation
        truncated = False
        while not truncated:
            *_, terminated, truncated, info = env.step("nonsense")
            assert not terminated
        assert info["score"] == 0
        again, _ = env.reset(seed=0, options={"task_id": task_id})
        assert again == first
    finally:
        env.close()


def test_live_mode_without_a_browser_says_what_to_do():
    if importlib.util.find_spec("playwright") is None:
        with pytest.raises(MissingPackage, match=r"pip install 'stepagent\[live\]'"):
            envs.make(ID, split="test", live=True)
        return
    env = envs.make(ID, split="test", live=True, browser=os.devnull)
    with pytest.raises(SetupError, match="browser"):
        env.reset(seed=0)
    env.close()


def test_the_bundled_tasks_are_those_that_their_checksum_stands_for():
    """Where this fails on purpose: record the tasks' new checksum, and renew CHECKSUM."""
    ids = [
        f"{name}/{number}"
        for name, (_, split) in sites.sites().items()
        for number in range(sites.TASKS_PER_SITE[split])
    ]
    tasks = checksum(*(json.dumps(sites.record(task_id)) for task_id in ids))
    assert (tasks, sites.CHECKSUM) == ("2e4ce3f651d799a7", "5bf660630f465981")
