"""Good and bad trajectories, and step pairs, from files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stepagent import agents, envs
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import write
from stepagent.eval.rollout import run_episodes
from stepagent.training import run as training_run
from stepagent.training.convert.command import main as convert
from stepagent.training.data import encode
from stepagent.training.methods import rollouts
from stepagent.training.methods.implicit import figures
from stepagent.training.methods.practice import practise
from stepagent.training.methods.preference_files import compare_files
from stepagent.training.methods.step_pair_files import practice_of_files
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.training_run import TrainingRun
from tests import toy_env

STYLE = PromptStyle(False, False, False)
TASKS = 4


@pytest.fixture
def config(config):
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.policy.max_new_tokens = 6
    config.sft.epochs, config.sft.learning_rate = 2, 1e-2
    config.reflection.iterations, config.reflection.sft_weight = 1, 0.0
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    preference = config.preference
    preference.batch_size, preference.epochs, preference.iterations = 4, 3, 1
    preference.learning_rate = 1e-3
    return config


@pytest.fixture
def experts():
    expert = agents.make_agent("expert")
    expert.style = STYLE
    env = envs.make(toy_env.ID, split="train", size=6)
    tasks = env.tasks[:TASKS]
    episodes = run_episodes(toy_env.ID, expert, tasks, split="train", env_args={"size": 6})
    return sorted(episodes, key=lambda t: t.task_id)


@pytest.fixture
def run(config, policy, experts):
    """What the readers need of a run."""
    policy.config.max_new_tokens = 6
    prompt = envs.make(toy_env.ID).prompt
    samples, _ = encode(experts, policy.codec, prompt, STYLE, 10_000)
    policy = SimpleNamespace(
        codec=policy.codec, config=policy.config, context=10_000, eos_ids=policy.eos_ids
    )
    return SimpleNamespace(
        config=config,
        policy=policy,
        samples=samples,
        prompt=prompt,
        style=STYLE,
        check_prompts=lambda samples: None,
    )


def _worse(expert, reward, actions=("add 2", "add 2")):
    """The expert's first step, then others."""
    steps = [expert.steps[0]]
    for action in actions:
        steps.append(replace(expert.steps[1], action=action, thought=""))
    return replace(expert, steps=tuple(steps), reward=reward, agent="other", success=False)


# Trajectories -------------------------------------------------------------------------------------


def test_the_best_of_a_task_is_preferred_to_each_that_scored_less(run, experts, tmp_path):
    one, two, three, _ = experts
    alone = replace(one, task_id="odd/11", agent="other")
    elsewhere = replace(one.steps[0], observation="Reach 7. The number is -1.")
    write(tmp_path / "a.jsonl", [_worse(one, 0.2), _worse(one, 0.5), replace(two, agent="other")])
    write(
        tmp_path / "b.jsonl",
        [
            _worse(three, 0.0),
            alone if alone.task_id not in {t.task_id for t in experts} else _worse(three, 0.1),
            replace(_worse(one, 0.1), steps=(elsewhere,)),
            replace(one, steps=()),
        ],
    )
    compared = compare_files(run, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    experts_of = {sample.trajectory.task_id: sample for sample in run.samples}
    assert all(better is experts_of[worse.trajectory.task_id] for better, worse in compared.pairs)
    rewards = [(w.trajectory.task_id, w.trajectory.reward) for _, w in compared.pairs]
    assert {(one.task_id, 0.2), (one.task_id, 0.5), (three.task_id, 0.0)} <= set(rewards)
    assert compared.figures["ties"] == 1, "the expert's own trajectory"
    assert compared.figures["unpaired"] >= 1, "it begins elsewhere"
    assert compared.figures["episodes_left_out"] == 1, "without a step"


def test_a_better_one_of_the_file_is_preferred_to_the_expert(run, experts, tmp_path):
    run.samples = [replace(s, trajectory=replace(s.trajectory, reward=0.8)) for s in run.samples]
    better = replace(_worse(experts[0], 0.9), task_id=experts[0].task_id)
    write(tmp_path / "a.jsonl", [better])
    [(chosen, rejected)] = compare_files(run, [str(tmp_path / "a.jsonl")]).pairs
    assert (chosen.trajectory, rejected) == (better, run.samples[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reward": 1.0}, ValueError, "no pair to learn"),
        ({"env": "tests/Other-v0"}, RunError, "holds trajectories of tests/Other-v0"),
        ({"split": "test"}, RunError, "on which the policy is to be scored"),
        ({"fingerprint": {"prompt": "0123"}}, RunError, "another prompt"),
    ],
)
def test_files_that_cannot_be_learned_from_are_refused(
    run, experts, tmp_path, change, error, message
):
    write(tmp_path / "a.jsonl", [replace(_worse(t, 0.1), **change) for t in experts])
    with pytest.raises(error, match=message):
        compare_files(run, [str(tmp_path / "a.jsonl")])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compare_files(run, [str(tmp_path / "nowhere.jsonl")])


@pytest.mark.parametrize("method", ["dpo", "eto"])
def test_a_run_learns_from_a_file_and_plays_nothing(config, experts, tmp_path, monkeypatch, method):
    monkeypatch.setattr(rollouts, "play", lambda *_: pytest.fail("it played episodes"))
    config.method = method
    config.preference.trajectories = [str(tmp_path / "bad.jsonl")]
    write(tmp_path / "bad.jsonl", [_worse(t, 0.1) for t in experts] + experts)
    numbers = training_run.run(config)["figures"]["dpo" if method == "dpo" else "iteration-1"]
    assert (numbers["pairs"], numbers["ties"], numbers["unpaired"]) == (TASKS, TASKS, 0)
    assert _moved(config.output, "dpo" if method == "dpo" else "iteration-1")


def _moved(output, stage):
    folder = Path(output) / "policies"
    before, after = (load_file(folder / name / "model.safetensors") for name in ("sft", stage))
    return any(not torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_takes_no_files_says_so(config):
    config.method, config.preference.trajectories = "spin", ["a.jsonl"]
    with pytest.raises(ValueError, match=r"preference\.trajectories is for dpo, eto and implicit"):
        training_run.run(config)


# Step pairs ---------------------------------------------------------------------------------------


def test_the_pairs_of_a_run_are_its_practice_again(config, run, tmp_path):
    """What `stepagent convert --to step-pairs` writes is read as the practice that it came from."""
    config.method, config.reflection.practice, config.reflection.weights = "implicit", 3, "none"
    training_run.run(config)
    out = tmp_path / "pairs.jsonl"
    assert convert([config.output, "--to", "step-pairs", "--out", str(out)]) == 0
    real = TrainingRun(
        replace(config, output=str(tmp_path / "again"), method="sft"), Console(quiet=True)
    )
    practices, values = practice_of_files(real, [str(out)])
    assert values is None
    numbers = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    again = figures(practices, real.policy.eos_ids)
    assert again["pairs"] == numbers["iteration-1"]["pairs"]
    assert again["distinct_pairs"] == pytest.approx(numbers["iteration-1"]["distinct_pairs"])
    assert len(practices) == len({p.tree.ids for p in practices}), "a tree for each trajectory"
    assert len(practices) <= 6


def _row(messages, chosen, rejected, **more):
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


@pytest.fixture
def rows(run):
    """Two states of a trajectory, in the second two other actions; one of another trajectory."""
    first = run.samples[0].trajectory.messages(run.prompt, STYLE)
    other = run.samples[1].trajectory.messages(run.prompt, STYLE)
    rewards = {"chosen_reward": 0.75, "rejected_reward": 0.25}
    return [
        _row(first[:1], first[1]["content"], "add 1", weight=2.0, **rewards),
        _row(first[:3], first[3]["content"], "add 1", **rewards),
        _row(first[:3], first[3]["content"], "jump", chosen_reward=0.5, rejected_reward=0.75),
        _row(other[:1], other[1]["content"], "jump", env=toy_env.ID, **rewards),
    ]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_pairs_of_a_trajectory_share_a_tree(run, rows, tmp_path):
    practices, values = practice_of_files(run, _write(tmp_path / "a.jsonl", rows))
    assert values is None
    assert [len(p.tree.branches) for p in practices] == [3, 1]
    assert [branch.step for branch in practices[0].tree.branches] == [0, 1, 1]
    codec = run.policy.codec
    assert [codec.decode(b.ids) for b in practices[0].tree.branches] == ["add 1", "add 1", "jump"]
    assert practices[0].agent[-3:] == (2.0, 1.0, 1.0)
    trunk = run.samples[0].encoded
    assert list(practices[0].tree.ids) == trunk.ids[: trunk.replies[1][1]]


def test_rewards_of_the_file_are_values_by_option(run, rows, tmp_path):
    run.config.reflection.weights = "value"
    _, values = practice_of_files(run, _write(tmp_path / "a.jsonl", rows))
    assert values == [(0.5, 0.5, 0.0), (0.5,)]
    del rows[3]["rejected_reward"]
    with pytest.raises(ValueError, match="a pair without rewards"):
        practice_of_files(run, _write(tmp_path / "b.jsonl", rows))


def test_equal_actions_of_a_pair_are_counted_and_not_learned(run, rows, tmp_path):
    same = rows[0]["chosen"][0]["content"]
    rows.append(_row(rows[0]["prompt"], same, f"Action: {same}"))
    practices, _ = practice_of_files(run, _write(tmp_path / "a.jsonl", rows))
    assert sum(p.draws_of_expert for p in practices) == 1
    run.config.reflection.equal = "tokens"
    practices, _ = practice_of_files(run, _write(tmp_path / "a.jsonl", rows))
    assert sum(p.draws_of_expert for p in practices) == 0
    run.config.reflection.equal = "action"
    with pytest.raises(ValueError, match="no pair of two different actions"):
        practice_of_files(run, _write(tmp_path / "a.jsonl", rows[-1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "text"}, "record 2: no step pair|line 2: no step pair"),
        ({"prompt": [{"from": "human", "value": "x"}]}, "line 2: no step pair"),
        ({"chosen": []}, "line 2: chosen is not one message"),
        ({"rejected": [{"role": "user", "content": "x"}]}, "rejected is not one message"),
        ({"weight": 0}, r"weight is 0\.0: it must be above 0"),
        ({"weight": "many"}, "weight is 'many', which is no finite number"),
        ({"chosen_reward": float("nan")}, "chosen_reward is nan, which is no finite number"),
        ({"env": "tests/Other-v0"}, "it is of tests/Other-v0"),
        ({"prompt": [{"role": "system", "content": "Do."}]}, "system message is not that"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "take turns"),
    ],
)
def test_what_is_no_step_pair_is_named(run, rows, tmp_path, change, message):
    rows[1] |= change
    with pytest.raises(ValueError, match=message):
        practice_of_files(run, _write(tmp_path / "a.jsonl", rows))


def test_files_in_a_bad_state(run, rows, tmp_path):
    path = tmp_path / "a.jsonl"
    _write(path, rows)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4: "):
        practice_of_files(run, [str(path)])
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        practice_of_files(run, [str(path)])
    with pytest.raises(FileNotFoundError):
        practice_of_files(run, [str(tmp_path / "nowhere.jsonl")])
    run.policy.context = 10
    with pytest.raises(ValueError, match="the model's context 10"):
        practice_of_files(run, _write(path, rows))


def test_two_trajectories_are_a_pair_where_they_part(run, experts, tmp_path):
    expert = experts[0]
    bad = _worse(expert, 0.25)
    write(tmp_path / "a.jsonl", [bad])
    run.config.reflection.weights = "value"
    [practice], [row] = practice_of_files(run, [str(tmp_path / "a.jsonl")])
    [branch] = practice.tree.branches
    assert (branch.step, run.policy.codec.decode(branch.ids)) == (1, "add 2")
    assert row == (expert.reward - 0.25,)
    otherwise = replace(bad.steps[1], observation="The number is 99.")
    write(tmp_path / "a.jsonl", [replace(bad, steps=(bad.steps[0], otherwise))])
    with pytest.raises(ValueError, match="no pair of two different actions"):
        practice_of_files(run, [str(tmp_path / "a.jsonl")])


def test_implicit_learns_from_a_file_and_practises_afterwards(
    config, run, rows, tmp_path, monkeypatch
):
    practised = []

    def watched(stage, *rest):
        practised.append(stage.name)
        return practise(stage, *rest)

    monkeypatch.setattr("stepagent.training.methods.implicit.practise", watched)
    config.method, config.reflection.iterations = "implicit", 2
    config.preference.trajectories = _write(tmp_path / "a.jsonl", rows)
    numbers = training_run.run(config)["figures"]
    assert numbers["iteration-1"]["pairs"] == 2 + 1 + 1 + 1
    assert practised == ["iteration-2"]
    assert _moved(config.output, "iteration-1")
