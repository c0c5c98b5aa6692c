import json
import os
import subprocess
import sys

import numpy as np
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.mind2web import score
from stepagent.envs.mind2web.env import Mind2WebEnv
from stepagent.envs.mind2web.questions import GROUP
from stepagent.envs.trajectory import Trajectory
from tests.envs.mind2web.records import make_step_record

ID = "stepagent/Mind2Web-v0"
TASKS = ("booking/ace-courts/0", "shop/green-thumb/1", "settings/stone-bank/2")


@pytest.mark.parametrize("answers", ["direct", "choice"])
@pytest.mark.parametrize("promise", check.CHECKS, ids=lambda p: p.__name__)
def test_contract(promise, answers):
    promise(lambda **more: envs.make(ID, **{"answers": answers, **more}))


def play(env, task_id, choose, seed=0):
    """An episode; returns it as a trajectory, and how many of its actions were valid."""
    env.reset(seed=seed, options={"task_id": task_id})
    ended, valid, actions, info = False, 0, 0, {}
    while not ended:
        *_, terminated, truncated, info = env.step(choose(env))
        ended, valid, actions = terminated or truncated, valid + info["valid"], actions + 1
    trajectory = Trajectory(
        ID, task_id, env.split, "x", seed, (), "", info["score"], info["success"],
        metrics=info["metrics"],
    )  # fmt: skip
    return trajectory, valid, actions


def play_expert(env, task_id, seed=0):
    env.reset(seed=seed, options={"task_id": task_id})
    plan = iter(env.expert_plan())

    def choose(_):
        thought, action = next(plan)
        return f"Thought: {thought}\nAction: {action}"

    return play(env, task_id, choose, seed)


def assert_perfect(trajectories):
    for of in (score.macro, score.micro):
        assert of(trajectories) == dict.fromkeys((*score.STEP_METRICS, "task_success"), 1.0)


@pytest.mark.parametrize("answers", ["direct", "choice"])
@pytest.mark.parametrize("split", envs.SPLITS)
def test_the_expert_is_perfect_on_bundled_tasks(split, answers):
    env = envs.make(ID, split=split, answers=answers)
    played = []
    for task_id in env.tasks[:: 16 if split == "train" else 8]:
        trajectory, valid, actions = play_expert(env, task_id)
        assert valid == actions
        assert trajectory.success
        assert trajectory.reward == 1
        played.append(trajectory)
    assert_perfect(played)
    assert env.problems == {}


@pytest.mark.real_data
@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_the_expert_is_perfect_on_real_steps(real_steps, answers):
    played, steps = [], 0
    for split in envs.SPLITS:
        env = envs.make(ID, split=split, data=real_steps, answers=answers)
        for task_id in env.tasks:
            trajectory, valid, actions = play_expert(env, task_id)
            assert valid == actions
            played.append(trajectory)
            steps += trajectory.metrics["task_steps"]
    assert (len(played), steps) == (87, 100)
    assert_perfect(played)


@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_a_random_agent_is_near_chance(answers):
    env, rng = envs.make(ID, split="test", answers=answers), np.random.default_rng(0)
    chances = []

    def choose(env):
        actions = env.admissible_actions()
        question, step = env._question, env._task.steps[len(env._scores)]
        if answers == "direct":
            nodes = [question.answer(action)[0].node for action in actions]
            chances.append(sum(node in step.positives for node in nodes) / len(actions))
        return actions[int(rng.integers(len(actions)))]

    played = [play(env, task_id, choose)[0] for task_id in env.tasks[::2]]
    reached = score.micro(played)["element_accuracy"]
    if answers == "direct":
        deviation = np.sqrt(sum(p * (1 - p) for p in chances)) / len(chances)
        assert abs(reached - np.mean(chances)) < 4 * deviation
        assert np.mean(chances) < 0.15
    else:
        assert 0 < reached < 0.25
    assert score.macro(played)["task_success"] < 0.05


def test_what_the_agent_sees():
    env = envs.make(ID, split="test")
    first, info = env.reset(seed=0, options={"task_id": TASKS[0]})
    assert first.startswith(f"Task: {info['instruction']}\nPrevious actions: none\nPage:\n<html>")
    assert "<a id=0" in first
    second, reward, *_, info = env.step("HOVER [1]")  # wrong, and yet the page goes on
    assert reward == 0
    assert not info["valid"]
    assert "CLICK, TYPE, SELECT" in second
    assert "Previous actions:\n[link] Courts -> CLICK" in second
    assert "<select id=" in second


def test_rewards_are_the_papers_and_the_history_is_the_recorded_one():
    env = envs.make(ID, split="test")
    env.reset(seed=0, options={"task_id": TASKS[1]})
    plan = [action for _, action in env.expert_plan()]
    assert len(plan) == 4
    rewards = [env.step(action)[1] for action in (plan[0], "CLICK [0]", plan[2])]
    observation, last, terminated, truncated, info = env.step("CLICK [999]")
    assert [*rewards, last] == [0.25, 0, 0.25, 0]
    assert terminated
    assert not truncated
    assert not info["success"]
    metrics = info["metrics"]
    assert metrics["element_accuracy"] == info["score"] == 0.5
    assert metrics["operation_f1"] == 1.0  # CLICK was right each time, on the wrong element or not
    assert metrics["step_success"] == 0.5
    assert metrics["task_success"] == 0
    assert "Right elements: 2 of 4" in observation


def test_a_wrong_value_costs_the_step_but_not_the_element():
    env = envs.make(ID, split="test")
    env.reset(seed=0, options={"task_id": TASKS[1]})
    plan = [action for _, action in env.expert_plan()]
    for action in (*plan[:2], plan[2].rsplit("[", 1)[0] + "[golden]"):
        observation, *_, info = env.step(action)
    assert (
        "'golden' was not among the options: clay pot, stone pot, tin pot, no pot." in observation
    )
    assert not info["valid"]
    assert info["score"] == 0.75
    metrics = env.step(plan[3])[-1]["metrics"]
    assert metrics["element_accuracy"] == 1
    assert metrics["operation_f1"] < 1
    assert metrics["step_success"] == 0.75


def test_a_reply_without_an_action_uses_up_an_answer():
    env = envs.make(ID, split="test")
    env.reset(seed=0, options={"task_id": TASKS[1]})
    plan = [action for _, action in env.expert_plan()]
    env.step("Thought: hm")
    for action in plan[:3]:
        *_, truncated, info = env.step(action)
    assert truncated
    assert info["score"] == info["metrics"]["element_accuracy"] == 0.75


def test_rounds_of_multiple_choice():
    env = envs.make(ID, split="test", answers="choice")
    observation, _ = env.reset(seed=0, options={"task_id": TASKS[2]})
    choices = observation.split("Choices:\n")[1].split("\n")
    assert choices[0] == "A. None of the above"
    assert [choice[:2] for choice in choices[1:]] == ["B.", "C.", "D.", "E.", "F."]
    assert all(choice[3:].startswith("<") for choice in choices[1:])
    other, _ = env.reset(seed=1, options={"task_id": TASKS[2]})
    assert other != observation  # shuffled with the seed
    again, _ = env.reset(seed=0, options={"task_id": TASKS[2]})
    assert again == observation
    candidates = len(env._library.ranked(TASKS[2], 0))
    rounds = 0
    while not env._scores:  # none of the above, until the page is through
        _, reward, *_, info = env.step("A")
        rounds += 1
        assert info["valid"]
        assert reward == 0
    assert rounds == -(-candidates // GROUP)


def test_choices_take_mindacts_three_lines():
    env = envs.make(ID, split="test", answers="choice")
    for number, (separator, value) in enumerate((("\n", "\nValue: "), (" ", " Value: "))):
        env.reset(seed=number, options={"task_id": TASKS[2]})
        for _, action in env.expert_plan():
            if action != "A":
                letter, rest = action.split(". ", 1)
                op, _, typed = rest.partition(" ")
                action = f"{letter}.{separator}Action: {op}"
                action += f"{value}{typed[1:-1]}" if typed else ""
            *_, terminated, _, info = env.step(action)
        assert terminated
        assert info["success"]


def test_no_positive_in_the_ranks_scores_nothing(tmp_path):
    name = "shop/green-thumb/1"
    env = envs.make(ID, split="test")
    env.reset(seed=0, options={"task_id": name})
    step = env._task.steps[0]
    others = [c.node for c in step.candidates if c.node not in step.positives]
    ranks = tmp_path / "ranks.json"
    ranks.write_text(json.dumps({step.uid: others[:4]}))
    env = envs.make(ID, split="test", ranks=ranks)
    trajectory, *_ = play_expert(env, name)
    assert trajectory.metrics["element_accuracy"] == 0.75
    assert trajectory.metrics["operation_f1"] == 0.75
    assert env.problems["no positive within the top 50"] == 1
    assert env.problems["step without ranks"] == 3


def test_every_page_fits_a_small_context():
    env = envs.make(ID)
    longest = 0
    for task_id in env.tasks[::12]:
        observation, _ = env.reset(seed=0, options={"task_id": task_id})
        seen = [observation]
        for _, action in env.expert_plan():
            seen.append(env.step(action)[0])
        from stepagent.envs.mind2web.prune import tokens

        longest = max(longest, sum(map(tokens, seen)))
        assert max(tokens(text) for text in seen) < 500
    assert longest < 2600


BAD_PAGES = {
    "broken markup": "<html backend_node_id='1'><a backend_node_id='2'>x</b",
    "page without node ids": "just words",
    "no page": "",
}


@pytest.mark.parametrize("problem", BAD_PAGES)
def test_bad_pages_are_counted(task_file, problem):
    step = make_step_record(BAD_PAGES[problem], pos=["2"], neg=["3"])
    good = make_step_record(pos=["1"])  # where no step at all has a page, the file is refused
    env = envs.make(ID, data=task_file(*[[step] * 3 + [good]] * 3))
    trajectory, *_ = play_expert(env, env.tasks[0])
    assert trajectory.reward == 1  # the candidates are known even where the page is not
    assert env.problems[problem] >= 1


def test_a_page_of_20_mb_is_counted(task_file):
    page = "<html backend_node_id='1'>" + "<a backend_node_id='2'>x</a>" * 700_000
    step = make_step_record(page, pos=["2"], neg=["3"])
    env = envs.make(ID, data=task_file([step]))
    assert play_expert(env, env.tasks[0])[0].reward == 1
    assert env.problems == {"page over 10 MB": 1}


@pytest.mark.parametrize("answers", ["direct", "choice"])
@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (make_step_record(pos=[], neg=["1"]), "no positive candidate"),
        (make_step_record(pos=[], neg=[]), "no candidates"),
        (make_step_record(op="SCROLL", pos=["1"]), "operation outside the three"),
    ],
)
def test_bad_steps_are_counted_and_never_crash(task_file, step, problem, answers):
    env = envs.make(ID, data=task_file([step, make_step_record(pos=["1"])]), answers=answers)
    trajectory, *_ = play_expert(env, env.tasks[0])
    assert env.problems[problem] == 1
    assert trajectory.metrics["step_success"] == 0.5
    env.reset(seed=0)
    assert isinstance(env.admissible_actions(), list)
    for text in check.hostile_actions(40):
        *_, terminated, truncated, _ = env.step(text)
        if terminated or truncated:
            env.reset(seed=0)


@pytest.mark.parametrize("answers", ["direct", "choice"])
@pytest.mark.parametrize("right", ["2", "6", "4"])
def test_any_element_may_be_right(task_file, right, answers):
    page = (
        "<html backend_node_id='1'><svg backend_node_id='7'><text backend_node_id='2'>Jan</text>"
        "</svg><noscript backend_node_id='5'><a backend_node_id='6'/></noscript>"
        "<button backend_node_id='4'/></html>"
    )
    step = make_step_record(page, pos=[right], neg={"2", "4", "6"} - {right})
    env = envs.make(ID, data=task_file([step]), answers=answers)
    assert play_expert(env, "task0")[0].success
    assert env.problems == {}


def test_a_task_id_may_hold_any_character(tmp_path):
    path = tmp_path / "tasks.json"
    actions = [make_step_record(pos=["1"])]
    task = {"annotation_id": "\ud800", "confirmed_task": "Go", "actions": actions}
    path.write_text(json.dumps([task]))
    assert envs.make(ID, data=path).reset(seed=0)[1]["task_id"] == "\ud800"


def test_a_select_value_that_does_not_exist_is_counted(task_file):
    page = (
        "<html backend_node_id='1'><select backend_node_id='2'><option><text>a</text></option>"
        "</select></html>"
    )
    step = make_step_record(page, "SELECT", "b", pos=["2"])
    env = envs.make(ID, data=task_file([step]))
    assert play_expert(env, "task0")[0].reward == 1
    assert env.problems == {"select value that does not exist": 1}


def test_operations_of_the_recording_count_as_clicks(task_file):
    env = envs.make(ID, data=task_file([make_step_record(op="HOVER", pos=["1"])]))
    assert play_expert(env, "task0")[0].success
    assert env.problems == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"answers": "both"}, "direct, choice"),
        ({"test_set": "cross-domain"}, "domain, task, website"),
        ({"html": "dirty"}, "cleaned, raw"),
        ({"top_k": 0}, "at least 1"),
        ({"budget": -1}, "at least 1"),
        ({"data": "/nowhere"}, "does not exist"),
        ({"ranker": "tfidf"}, "bm25"),
        ({"ranker": "os:system", "ranker_args": {"command": "true"}}, "subclass of"),
        ({"ranker_args": {"k9": 1}}, "k9"),
        ({"ranks": "/nowhere.json"}, "cannot be read"),
    ],
)
def test_wrong_arguments_say_what_is_right(arguments, says):
    with pytest.raises(ValueError, match=says):
        envs.make(ID, **arguments)


def fuzz(answers, count):
    env, rng = envs.make(ID, answers=answers), np.random.default_rng(1)
    env.reset(seed=0)
    parts = [
        "CLICK",
        "TYPE",
        "SELECT",
        "[",
        "]",
        "3",
        "99",
        "A.",
        "C.",
        "F. CLICK",
        "Action:",
        "\n",
    ]
    parts += ["Value:", "id=2", "é\x00", "[x]", "Thought:", " " * 50]
    actions = list(check.hostile_actions(count // 3, seed=1))
    while len(actions) < count:
        actions.append(" ".join(rng.choice(parts, size=int(rng.integers(1, 9)))))
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert isinstance(observation, str)
        assert 0 <= info["score"] <= 1
        assert reward >= 0
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_fuzzed_actions(answers):
    fuzz(answers, 300)


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_ten_thousand_fuzzed_actions(answers):
    fuzz(answers, 10_000)


WALK = """
import sys, envs
env = envs.make("stepagent/Mind2Web-v0", split="test", answers=sys.argv[1])
for task in env.tasks[::48]:
    print(env.reset(seed=4, options={"task_id": task})[0])
    for thought, action in env.expert_plan():
        print(thought, action, env.step(action)[0])
"""


def test_the_same_text_in_every_process():
    texts = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", WALK, "choice"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.check_output(command, env=environment, text=True))
    assert len(texts) == 1


def test_the_password_stays_out_of_results(official):
    env = envs.make(ID, data=official, password="sesame")
    assert isinstance(env, Mind2WebEnv)
    assert "sesame" not in str(env.fingerprint())
