import re
import subprocess
import sys

import gymnasium as gym
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.alfworld import generate, household, pddl, planner, wording
from stepagent.envs.core import SPLITS

ID = "stepagent/ALFWorld-v0"


@pytest.mark.parametrize("promise", check.CHECKS, ids=lambda p: p.__name__)
def test_contract(promise):
    promise(lambda **more: envs.make(ID, **more))


@pytest.mark.parametrize("kind", generate.TYPES)
@pytest.mark.parametrize("expert", ["explorer", "planner"])
def test_the_experts_win_every_type(kind, expert):
    env = envs.make(ID, split="test", expert=expert)
    for number in range(3):
        env.reset(seed=0, options={"task_id": f"{kind}/test-{number:04d}"})
        assert env.task_type == kind
        plan = env.expert_plan()
        for thought, action in plan:
            assert thought.endswith("."), thought
            assert "{" not in thought
            *_, terminated, truncated, info = env.step(f"Thought: {thought}\nAction: {action}")
            assert info["valid"], (thought, action)
        assert terminated
        assert not truncated
        assert info["success"]
        assert info["score"] == 1.0


def test_the_explorer_uses_only_what_it_has_seen():
    """Things that it takes, and lamps that it goes to, were named in an observation before."""
    env = envs.make(ID, split="train")
    for task_id in env.tasks[:60]:
        seen, _ = env.reset(seed=0, options={"task_id": task_id})
        for _, action in env.expert_plan():
            words = action.split()
            if words[0] in ("take", "use"):
                assert f" {words[1]} {words[2]}" in seen, (task_id, action)
            if words[0] == "go":
                assert f" {words[2]} {words[3]}" in seen
            seen += env.step(action)[0]


def test_the_step_limit_is_etos_and_can_be_upstreams():
    env = envs.make(ID)
    env.reset(seed=0)
    ends = [env.step("look")[3] for _ in range(40)]
    assert ends == [False] * 39 + [True]
    assert envs.make(ID, max_steps=50).max_steps == 50


def play_old_and_new(make_words):
    """Wins the first task with its actions said in some way; what is shown for each."""
    env = envs.make(ID, split="test", expert="planner")
    env.reset(seed=0, options={"task_id": "look_at_obj_in_light/test-0000"})
    light = [a for _, a in env.expert_plan()]
    env.reset(seed=0, options={"task_id": "pick_clean_then_place_in_recep/test-0000"})
    clean = [a for _, a in env.expert_plan()]
    shown = []
    for task, actions in (
        ("look_at_obj_in_light/test-0000", light),
        ("pick_clean_then_place_in_recep/test-0000", clean),
    ):
        env.reset(seed=0, options={"task_id": task})
        for action in actions:
            observation, *_, info = env.step(make_words(action))
            assert info["valid"], make_words(action)
            shown.append(observation)
        assert info["success"]
    return shown


@pytest.mark.parametrize(
    "say",
    [
        lambda action: wording.spoken(action, "old"),
        lambda action: wording.spoken(action, "new"),
        lambda action: action.upper(),
        lambda action: f"{action.capitalize()}.",
        lambda action: f"  {action.replace(' ', '  ')} ",
        lambda action: f"Action: {wording.spoken(action, 'old')}.",
        lambda action: re.sub(r"([a-z]+ \d+)", r"the \1", action),
        lambda action: re.sub(r"([a-z]+ \d+)", r"A \1", wording.spoken(action, "old")),
    ],
)
def test_every_wording_is_the_same_action(say):
    assert play_old_and_new(say) == play_old_and_new(lambda action: action)


def test_prompt_expert_and_fingerprint_speak_the_wording_asked_for():
    fingerprints = {}
    for words, put, switch in (
        ("old", "put OBJ in/on RECEP", "toggle OBJ"),
        ("new", "move OBJ to RECEP", "use OBJ"),
    ):
        env = envs.make(ID, split="test", wording=words)
        assert put in env.prompt.instruction
        assert switch in env.prompt.instruction
        assert any(action.startswith(put.split()[0]) for *_, action in env.prompt.example)
        env.reset(seed=0, options={"task_id": "pick_and_place_simple/test-0000"})
        actions = [action for _, action in env.expert_plan()]
        assert any(action.startswith(put.split()[0]) for action in actions)
        for action in actions:
            assert env.step(action)[-1]["valid"]
        fingerprints[words] = env.fingerprint()
        assert fingerprints[words]["wording"] == words
        assert fingerprints[words]["engine"] == "fast"
    assert fingerprints["old"]["prompt"] != fingerprints["new"]["prompt"]
    assert envs.make(ID).wording == "new"  # what the installed rules say


def test_what_is_no_command_does_nothing_and_counts():
    env = envs.make(ID)
    env.reset(seed=0)
    before = env.admissible_actions()
    for text in ("fly to the moon", "go to fridge 99", "take", "x" * 5000, "go to " * 30):
        observation, reward, *_, info = env.step(text)
        assert observation == "Nothing happens."
        assert reward == 0.0
        assert not info["valid"]
    assert env.admissible_actions() == before


def test_admissible_actions_can_be_done():
    env = envs.make(ID, split="dev")
    env.reset(seed=3)
    actions = env.admissible_actions()
    assert actions == sorted(set(actions))
    assert {"look", "inventory", "help"} <= set(actions)
    for action in actions:
        env.reset(seed=3)
        assert env.step(action)[-1]["valid"], action


def test_tasks_restricts_every_split():
    for split, count in zip(SPLITS, generate.SIZES, strict=True):
        types = "look_at_obj_in_light, pick_two_obj_and_place"
        tasks = envs.make(ID, split=split, tasks=types).unwrapped.tasks
        assert len(tasks) == 2 * count
        assert {task.split("/")[0] for task in tasks} == set(types.split(", "))
    with pytest.raises(ValueError, match="pick_heat"):
        envs.make(ID, tasks=types).reset(options={"task_id": "pick_heat/train-0000"})


def test_sizes_adds_games_to_those_there_are():
    few, many = (envs.make(ID, split="test", sizes=n).unwrapped for n in ((1, 1, 2), [1, 1, 50]))
    assert len(few.tasks) == 12
    assert len(many.tasks) == 300
    assert few.tasks == many.tasks[:12]
    assert few.fingerprint() != many.fingerprint()
    for sizes in ((1, 2), (0, 1, 1)):
        with pytest.raises(ValueError, match="three numbers"):
            envs.make(ID, sizes=sizes)
    with pytest.raises(ValueError, match="the most is 100,000"):
        envs.make(ID, sizes=(10**9, 1, 1))
    with pytest.raises(ValueError, match="generated"):
        envs.make(ID, data="/nowhere", sizes=(1, 1, 1))


def test_wrong_arguments_list_what_exists():
    with pytest.raises(ValueError, match="fast, textworld"):
        envs.make(ID, engine="quick")
    with pytest.raises(ValueError, match="old, new"):
        envs.make(ID, wording="middle")
    with pytest.raises(ValueError, match="explorer, planner"):
        envs.make(ID, expert="oracle")
    with pytest.raises(ValueError, match="pick_and_place_simple"):
        envs.make(ID, tasks="pick_and_place")
    with pytest.raises(RuntimeError, match="reset"):
        envs.make(ID).admissible_actions()


WALK = """
from stepagent import envs
env = envs.make("stepagent/ALFWorld-v0", split="test")
for task in ("pick_two_obj_and_place/test-0001", "look_at_obj_in_light/test-0002"):
    print(env.reset(seed=4, options={"task_id": task})[0], env.admissible_actions())
    for thought, action in env.expert_plan():
        print(thought, action, env.step(action))
"""


def test_the_same_text_in_every_process():
    texts = {
        subprocess.run(
            [sys.executable, "-c", WALK], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(texts) == 1
    assert len(texts.pop()) > 1000


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode):
    vector = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, split="dev")
    texts, _ = vector.reset(seed=0)
    assert all("Your task is to" in text for text in texts)
    texts, *_ = vector.step(["look", "inventory"])
    assert len(texts) == 2
    vector.close()


def test_64_environments_in_one_process():
    environments = [envs.make(ID) for _ in range(64)]
    tasks = environments[0].tasks
    plans = []
    for i, env in enumerate(environments):
        env.reset(seed=0, options={"task_id": tasks[i % 6]})
        plans.append(env.expert_plan())
    for turn in range(max(map(len, plans))):
        for env, plan in zip(environments, plans, strict=True):
            if turn < len(plan):
                info = env.step(plan[turn][1])[-1]
                assert info["success"] == (turn == len(plan) - 1)


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["300", "10000"]
)
def test_hostile_commands(count):
    env = envs.make(ID, split="train")
    env.reset(seed=0)
    for i, action in enumerate(check.hostile_actions(count, seed=1)):
        if i % 3 == 0:  # half real: parts of true commands, doubled and cut
            words = env.admissible_actions()[i % 7].split() * (1 + i % 5)
            action = f"{' '.join(words[: i % 9])} {action[: i % 50]}"
        _, reward, terminated, truncated, _ = env.step(action)
        assert reward in (0.0, 1.0)
        if terminated or truncated:
            env.reset()
    env.close()


def test_the_planner_knows_when_it_is_hopeless(make_game):
    game = make_game("pick_heat_then_place_in_recep/test-0000")
    play = game.start()
    for fact in play.facts.find("inreceptacle", None, None):
        play.facts.fluent.discard(fact)
    with pytest.raises(pddl.GameError, match="cannot be reached"):
        planner.plan(play)
    assert household.read_goal(game).state == "ishot"


def test_the_reference_engine_or_how_to_get_it():
    task = "pick_and_place_simple/test-0000"
    try:
        import fast_downward  # noqa: F401
        import textworld  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="stepagent install textworld"):
            envs.make(ID, split="test", engine="textworld").reset(options={"task_id": task})
        return
    env = envs.make(ID, split="test", engine="textworld")
    fast = envs.make(ID, split="test")
    assert env.reset(seed=0, options={"task_id": task}) == fast.reset(
        seed=0, options={"task_id": task}
    )
    for _, action in fast.expert_plan():
        assert env.admissible_actions() == fast.admissible_actions()
        assert env.step(f"{action}.") == fast.step(f"{action}.")
    assert env.fingerprint()["engine"] == "textworld"
