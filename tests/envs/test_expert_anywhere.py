"""The expert asked in any state: `expert_action`, `expert_plan(from_here=True)`."""

import random

import gymnasium as gym
import pytest

from stepagent import envs
from stepagent.envs import check
from tests.envs.serve.servers import Running
from tests.toy_env import ID as TOY

GUESS = "tests.envs.guess:tests/Guess-v0"
ALFWORLD, WEBSHOP = "stepagent/ALFWorld-v0", "stepagent/WebShop-v0"
SCIENCE = "stepagent/ScienceWorld-v0"


def play_on(env, replan=None):
    """What the expert does from here, asked at every step, and the last info."""
    actions, info = [], {}
    while pair := env.expert_action() if replan is None else next(iter(replan()), None):
        *_, info = env.step(pair[1])
        assert info["valid"], pair
        actions.append(pair[1])
    return actions, info


def wander(env, rng, steps, actions=None):
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(rng.choice(actions or env.admissible_actions()))
        if terminated or truncated:
            return False
    return True


# The contract ---------------------------------------------------------------------------------


def test_an_expert_of_the_reset_only_says_so():
    env = envs.make(GUESS)
    env.reset(seed=0)
    assert not env.expert_anywhere
    with pytest.raises(NotImplementedError, match="GuessEnv has no expert for any state"):
        env.expert_action()
    check.check_expert_anywhere(lambda **more: envs.make(GUESS, **more))


def test_before_the_reset_and_after_the_end():
    env = envs.make(TOY)
    with pytest.raises(RuntimeError, match="call reset"):
        env.expert_action()
    env.reset(seed=0)
    while env.expert_action():
        *_, info = env.step(env.expert_action()[1])
    assert info["success"]
    assert env.steps_left == 0
    assert env.expert_plan(from_here=True) == []


def test_a_used_up_budget_is_lost():
    env = envs.make(TOY, max_steps=3)
    env.reset(seed=0, options={"task_id": "odd/21"})
    assert env.expert_action() is None  # 21 is out of reach in three steps of 3


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda self: [("", "add 1")] * 99, "where 1?[0-9] are left"),
        (lambda self: [("", "say nothing")], "gains nothing"),
        (
            lambda self: self.step("add 1") and [("", "add 1")],
            "expert_action is not how the plan begins",
        ),
    ],
)
def test_the_checker_finds_a_wrong_expert(change, broken):
    kind = type(envs.make(TOY))
    wrong = type("Wrong", (kind,), {"_plan_from": lambda self, number: change(self)})
    gym.register("tests/Wrong-v0", entry_point=wrong, disable_env_checker=True)
    try:
        with pytest.raises(AssertionError, match=broken):
            check.check_expert_anywhere(lambda **more: envs.make("tests/Wrong-v0", **more))
    finally:
        del gym.registry["tests/Wrong-v0"]


def test_on_a_server_and_in_vectors():
    here = envs.make(TOY)
    with Running(TOY, GUESS) as server:
        there = envs.make(TOY, url=server.url)
        for env in (here, there):
            env.reset(seed=3)
            env.step("add 1")
            env.step("what?")
        assert there.expert_anywhere
        assert there.expert_action() == here.expert_action()
        assert there.expert_plan(from_here=True) == here.expert_plan(from_here=True)
        assert play_on(there) == play_on(here)
        assert there.expert_action() is None
        other = envs.make(GUESS, url=server.url)
        other.reset(seed=0)
        assert not other.expert_anywhere
        with pytest.raises(NotImplementedError):
            other.expert_action()
        for vector in (
            gym.make_vec(TOY, num_envs=2, vectorization_mode="sync"),
            gym.make_vec(TOY, num_envs=2, vectorization_mode="async"),
            gym.make_vec(TOY, num_envs=2, url=server.url),
        ):
            vector.reset(seed=5)
            vector.step(["add 1", "add 2"])
            actions = vector.call("expert_action")
            assert [pair[1] for pair in actions] == ["add 3", "add 3"]
            vector.close()


# The environments -----------------------------------------------------------------------------


@pytest.mark.parametrize("expert", ["explorer", "planner"])
def test_alfworld_is_won_from_wherever_a_walk_ends(expert):
    """Planning anew at every step, without the plan of the step before: no step is undone."""
    env, rng, walks = envs.make(ALFWORLD, expert=expert, max_steps=100), random.Random(1), 0
    for task_id in rng.sample(env.tasks, 30):
        env.reset(seed=0, options={"task_id": task_id})
        if not wander(env, rng, rng.randint(1, 20)):
            continue
        planned = env.expert_plan(from_here=True)
        actions, info = play_on(env, env._plan_from_here)
        assert info["success"]
        assert len(actions) <= len(planned) + 2, (task_id, actions, planned)
        walks += 1
    assert walks > 20


def test_alfworlds_explorer_uses_what_the_agent_has_seen_and_nothing_else():
    env, rng = envs.make(ALFWORLD, max_steps=100), random.Random(2)
    for task_id in rng.sample(env.tasks, 20):
        seen, _ = env.reset(seed=0, options={"task_id": task_id})
        for _ in range(rng.randint(1, 20)):
            observation, _, ended, *_ = env.step(rng.choice(env.admissible_actions()))
            seen += observation
        if ended:
            continue
        for _, action in env.expert_plan(from_here=True):
            words = action.split()
            if words[0] in ("take", "use"):
                assert f" {words[1]} {words[2]}" in seen, (task_id, action)
            seen += env.step(action)[0]
    # What lies where the agent has looked is fetched without another search.
    env = envs.make(ALFWORLD)
    env.reset(seed=0, options={"task_id": "pick_and_place_simple/train-0000"})
    plan = [action for _, action in env.expert_plan()]
    take = next(i for i, action in enumerate(plan) if action.startswith("take "))
    place = plan[take].split(" from ")[1]
    for action in (f"go to {place}", f"open {place}", "go to " + plan[-1].split(" to ")[-1]):
        env.step(action)
    onwards = [action for _, action in env.expert_plan(from_here=True)]
    assert onwards[:2] == [f"go to {place}", plan[take]]


def test_alfworlds_expert_puts_down_what_is_of_no_use():
    env = envs.make(ALFWORLD)
    for task_id in env.tasks[:40]:
        env.reset(seed=0, options={"task_id": task_id})
        goal = env.instruction
        surfaces = [a for a in env.admissible_actions() if a.startswith("go to countertop")]
        if not surfaces:
            continue
        env.step(surfaces[0])
        takes = [a for a in env.admissible_actions() if a.startswith("take ")]
        useless = [a for a in takes if a.split()[1] not in goal]
        if useless:
            env.step(useless[0])
            thought, action = env.expert_action()
            assert action.startswith(f"move {' '.join(useless[0].split()[1:3])} to countertop")
            assert "do not need" in thought or "hands free" in thought
            assert play_on(env)[1]["success"]
            return
    raise AssertionError("no task with something useless on a countertop")


def test_webshop_from_any_page_with_steps_enough_is_perfect():
    env, rng = envs.make(WEBSHOP, max_steps=40), random.Random(3)
    pages = set()
    for task_id in rng.sample(env.tasks, 30):
        env.reset(seed=0, options={"task_id": task_id})
        for _ in range(rng.randint(1, 20)):
            actions = [a for a in env.admissible_actions() if a != "click[buy now]"]
            env.step(rng.choice(actions))
        pages.add(env.visit.page.name)
        planned = env.expert_plan(from_here=True)
        actions, info = play_on(env, env._plan_from_here)
        assert info["score"] == 1.0
        assert len(actions) == len(planned)
    assert pages == {"results", "item", "sub"} | (pages & {"index"})


def test_webshop_takes_what_the_steps_left_allow():
    env = envs.make(WEBSHOP)
    env.reset(seed=0)
    plan = [action for _, action in env.expert_plan()]
    asin = next(a for a in plan if a.startswith("click[b"))
    for action in [plan[0], asin, "click[description]", "click[< prev]"]:
        env.step(action)
    while env.steps_left > 1:
        env.step("click[nothing of the kind]")
    (_, action), *rest = env.expert_plan(from_here=True)
    assert (action, rest) == ("click[buy now]", [])  # options unchosen: better than nothing
    assert 0 < env.step(action)[4]["score"] <= 1
    env.reset(seed=0)
    while env.steps_left > 2:
        env.step(plan[0])
    assert env.expert_action() is not None  # what is on the page can be opened and bought
    env.step("click[back to search]")
    assert env.expert_action() is None  # one step: too few to search, open and buy


def test_wikipedia_goes_on_with_the_hops_that_are_open():
    env = envs.make("stepagent/MuSiQue-v0", lookup=True, sentences=2, max_steps=12)
    for task_id in env.tasks[:20]:
        env.reset(seed=0, options={"task_id": task_id})
        road = [action for _, action in env.expert_plan()]
        for action in ("search[no such page anywhere]", *road[:1], "lookup[nonsense]"):
            env.step(action)
        onwards = [action for _, action in env._plan(env.steps_left, env._reading)]
        assert onwards == road[1:]  # the page is open still: a lookup in it needs no new search
        while env.steps_left > 1:
            env.step("think[hard]")
        assert env.expert_action()[1] == f"finish[{env.question.answers[0]}]"


@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_mind2web_is_right_on_every_page_that_is_left(answers):
    env = envs.make("stepagent/Mind2Web-v0", answers=answers)
    task = env.tasks[3]
    env.reset(seed=0, options={"task_id": task})
    steps = len(env._task.steps)
    while not env._scores:  # the first page is answered wrongly
        right = env.expert_action()[1]
        env.step(next(a for a in env.admissible_actions() if a != right))
    lost = sum(score.element_accuracy == 0 for score in env._scores)
    _, info = play_on(env)
    assert info["score"] == pytest.approx((steps - lost) / steps)


@pytest.fixture(scope="module")
def science():
    environment = envs.make(SCIENCE)
    yield environment
    environment.close()


def test_scienceworld_goes_on_where_the_agent_has_gone_astray(science):
    science.reset(seed=0, options={"task_id": "find-plant/2"})
    for action in (
        "teleport to kitchen",
        "pick up thermometer",
        "open fridge",
        "wait1",
        "nonsense",
    ):
        science.step(action)
    actions, info = play_on(science)
    assert info["score"] == 1.0
    assert actions[0].startswith("teleport to")


def test_scienceworlds_copy_is_the_state_whatever_was_asked_before(science):
    """Listing what is possible draws random numbers, which must not be those of the world."""
    task = {"task_id": "lifespan-longest-lived/3"}
    shown = []
    for lists in (False, True):
        science.reset(seed=0, options=task)
        seen = []
        for action in ("teleport to outside", "wait", "look around", "wait", "look around"):
            if lists:
                science.admissible_actions()
            seen.append(science.step(action)[0])
        shown.append(seen)
    assert shown[0] == shown[1]
    assert play_on(science)[1]["score"] == 1.0


def test_scienceworld_answers_or_cancels_an_open_question(science):
    science.reset(seed=0, options={"task_id": "find-plant/2"})
    science.step("teleport to greenhouse")
    assert "Ambiguous" in science.step("pick up flower pot")[0]
    assert science.expert_action()[1] in ("0", "look around")
    assert play_on(science)[1]["score"] == 1.0


def test_scienceworld_says_that_a_state_is_lost(science):
    science.reset(seed=0, options={"task_id": "find-plant/2"})
    science.step("teleport to art studio")
    *_, ended, _, info = science.step("focus on table")
    assert ended
    assert info["score"] < 1
    assert science.expert_action() is None  # a wrong focus ends it
    short = envs.make(SCIENCE, max_steps=2)
    short.reset(seed=0, options={"task_id": "boil/2"})
    short.step("look around")
    assert short.expert_plan(from_here=True) == []  # one step is left
    short.close()


@pytest.mark.parametrize("env_id", envs.ENTRY_POINTS)
def test_an_agent_on_the_experts_road_gets_the_rest_of_its_plan(env_id):
    env = envs.make(env_id)
    env.reset(seed=0)
    plan = env.expert_plan()
    for number, (thought, action) in enumerate(plan):
        assert env.expert_plan(from_here=True) == plan[number:]
        env.step(f"Thought: {thought}\nAction: {action}")
    env.close()
