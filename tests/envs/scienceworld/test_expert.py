import re

import pytest

from stepagent import envs
from stepagent.envs.scienceworld import data, expert, jvm, thoughts
from stepagent.envs.scienceworld.plans import upstream
from stepagent.envs.scienceworld.playthrough import PlanEnded, Playthrough

ID = "stepagent/ScienceWorld-v0"
SAMPLE = (
    "boil/22",  # upstream's path measures beyond the step limit
    "change-the-state-of-matter-of/25",
    "chemistry-mix/24",  # upstream's path
    "chemistry-mix-paint-secondary-color/30",  # two drawers
    "chemistry-mix-paint-tertiary-color/28",
    "find-animal/231",
    "find-living-thing/225",  # upstream's path chases bees
    "find-non-living-thing/18",
    "find-plant/30",
    "freeze/14",  # melts on the way, then freezes
    "freeze/19",  # would catch fire in the furnace
    "grow-fruit/80",  # all bees are gone when the doors could be shut
    "grow-fruit/95",  # soil has to be dug
    "grow-plant/98",
    "identify-life-stages-1/9",
    "identify-life-stages-2/6",
    "lifespan-longest-lived/93",
    "lifespan-longest-lived-then-shortest-lived/53",
    "lifespan-shortest-lived/102",
    "measure-melting-point-known-substance/327",  # upstream's path
    "melt/24",  # a liquid
    "power-component/15",
    "power-component-renewable-vs-nonrenewable-energy/16",
    "test-conductivity/37",
    "test-conductivity-of-unknown-substances/125",
    "use-thermometer/0",
)


@pytest.fixture(scope="module")
def splits():
    envs_by_split = {split: envs.make(ID, split=split) for split in ("train", "dev", "test")}
    yield envs_by_split
    for env in envs_by_split.values():
        env.close()


def _env(splits, task_id):
    return next(env for env in splits.values() if task_id in env.unwrapped.list_tasks())


def _play(env, task_id):
    """Plays the expert's plan: (score, ended, actions refused, plan)."""
    env.reset(seed=0, options={"task_id": task_id})
    plan, refused = env.expert_plan(), []
    for thought, action in plan:
        _, _, ended, truncated, info = env.step(f"Thought: {thought}\nAction: {action}")
        if not info["valid"]:
            refused.append(action)
        if ended or truncated:
            break
    return info["score"], ended, refused, plan


@pytest.mark.parametrize("task_id", SAMPLE)
def test_the_plan_solves_the_task_and_ends_with_it(splits, task_id):
    score, ended, refused, plan = _play(_env(splits, task_id), task_id)
    assert score == 1.0
    assert ended
    assert refused == []
    assert len(plan) <= data.step_limit(task_id.split("/")[0])
    for thought, action in plan:
        assert re.fullmatch(r"[A-Z].*\.", thought), (thought, action)
        assert not re.search(r"[{}]|\b(the the|in outside|in inventory|no the)\b", thought), thought


def test_every_task_of_the_paper_is_in_the_sample():
    assert {task_id.split("/")[0] for task_id in SAMPLE} == set(data.STEP_LIMITS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_test_set(splits):
    results = {task_id: _play(splits["test"], task_id) for task_id in data.task_ids("test")}
    missed = {k: (v[0], [a for _, a in v[3]]) for k, v in results.items() if v[0] < 1}
    assert len(results) == 211
    assert sum(v[0] for v in results.values()) / len(results) >= 0.99, missed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sample_of_the_training_tasks(splits):
    tasks = data.task_ids("train")[3::14]
    scores = {task_id: _play(splits["train"], task_id)[0] for task_id in tasks}
    assert len(scores) >= 100
    assert sum(scores.values()) / len(scores) >= 0.98, {k: v for k, v in scores.items() if v < 1}


def test_the_first_animal_that_is_listed_is_chosen(splits):
    for task_id in ("find-animal/225", "find-living-thing/30", "find-living-thing/226"):
        env = _env(splits, task_id)
        env.reset(seed=0, options={"task_id": task_id})
        plan = env.expert_plan()
        assert [action for _, action in plan[:2]] == ["teleport to outside", "look around"]
        env.step("teleport to outside")
        seen = env.step("look around")[0]
        animals = re.findall(r"\ta (.* egg|(?:baby|juvenile|adult) (?!bee).*)\n", seen)
        assert plan[2][1] == f"focus on {animals[0]}"


def test_a_plan_is_the_same_every_time_and_without_teleporting_too():
    switches = data.default_simplifications("grow-plant")
    again = expert.plan.__wrapped__("grow-plant/94", switches)
    assert again == expert.plan.__wrapped__("grow-plant/94", switches)
    walked = envs.make(
        ID, split="test", simplifications="openDoors"
    )  # no teleport: upstream's path
    score, ended, _, plan = _play(walked, "lifespan-longest-lived/93")
    walked.close()
    assert (score, ended) == (1.0, True)
    assert not [action for _, action in plan if action.startswith("teleport")]


def test_a_playthrough_leaves_out_what_the_parser_does_not_know():
    simulator = jvm.Simulator()
    switches = data.default_simplifications("lifespan-longest-lived")
    playthrough = Playthrough(simulator, "lifespan-longest-lived", 93, switches, limit=3)
    playthrough.do("teleport to moon", "teleport to outside")
    assert playthrough.unknown_actions == 1
    playthrough.do("wait")
    assert playthrough.actions == ("teleport to outside",)
    with pytest.raises(PlanEnded):
        playthrough.do("focus on crocodile egg")
    assert playthrough.score == 1.0
    assert playthrough.actions == ("teleport to outside", "wait", "focus on crocodile egg")
    playthrough = Playthrough(simulator, "lifespan-longest-lived", 93, switches, limit=1)
    playthrough.look()
    with pytest.raises(PlanEnded):
        playthrough.look()
    simulator.close()


def test_walks_become_teleports():
    path = ["open door to hallway", "go to hallway", "look around", "open door to kitchen",
            "go to kitchen", "look around", "open cupboard", "pick up cup"]  # fmt: skip
    short = upstream.teleporting(path)
    assert short == [
        "teleport to hallway", "look around", "teleport to kitchen", "look around", "pick up cup"
    ]  # fmt: skip
    assert upstream.without_searching(short) == [
        "teleport to kitchen",
        "look around",
        "pick up cup",
    ]


def test_thoughts_do_not_tell_what_is_only_seen_later():
    goal = "Your task is to find a(n) animal. First, focus on the thing."
    actions = ["teleport to outside", "look around", "focus on frog egg"]
    for number in range(20):
        sentences = thoughts.of(f"find-animal/{number}", goal, actions)
        assert "frog" not in sentences[0] + sentences[1]
        assert "frog egg" in sentences[2]


def test_thoughts_give_the_reason_for_the_box():
    goal = (
        "Your task is to determine if lead is electrically conductive. If it is electrically "
        "conductive, place it in the red box. If it is electrically nonconductive, place it in the "
        "blue box."
    )
    sentences = thoughts.of("x/1", goal, ["move lead to red box", "move lead to blue box"])
    assert sentences == [
        "The bulb shines, so the red box is the right one.",
        "The bulb stays dark, so the blue box is the right one.",
    ]
    goal = (
        "Your task is to measure the melting point of tin, which is in the kitchen. If the melting "
        "point of tin is above -10.0 degrees celsius, focus on the red box. If the melting point "
        "of tin is below -10.0 degrees celsius, focus on the blue box."
    )
    sentences = thoughts.of("x/1", goal, ["focus on tin", "focus on red box", "focus on blue box"])
    assert "measured" not in sentences[0]
    assert sentences[1:] == [
        "What I measured is above -10.0 degrees celsius, so the red box is the right one.",
        "What I measured is not above -10.0 degrees celsius, so the blue box is the right one.",
    ]
