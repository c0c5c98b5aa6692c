"""Rewards per step: from the expert, from what is in reach, and from a trained discriminator."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepagent import envs, rewards
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.errors import UsageError
from stepagent.training import run as training
from stepagent.training.methods import discriminator
from stepagent.training.policy import Policy
from stepagent.training.trees.tree import StepTree
from tests import toy_env
from tests.envs import guess  # noqa: F401 (registers the guessing game)
from tests.training.conftest import config, one_thread  # noqa: F401

GUESS = "tests.envs.guess:tests/Guess-v0"
TASK = "odd/25"


def played(*actions, env_id=toy_env.ID, task=TASK, seed=0, **env_args):
    """The trajectory of these actions; "expert" stands for the expert's next one."""
    env = envs.make(env_id, split="train", **env_args)
    observation, info = env.reset(seed=seed, options={"task_id": task})
    steps = []
    for action in actions:
        if action == "expert":
            action = env.expert_action()[1]
        before = observation
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append(Step(before, "", action, reward, info["valid"]))
        if terminated or truncated:
            break
    return Trajectory(
        env_id,
        task,
        "train",
        "a",
        seed,
        tuple(steps),
        observation,
        info["score"],
        info["success"],
        fingerprint=env.fingerprint(),
    )


def test_the_expert_says_of_each_step_whether_it_would_act_so():
    trajectory = played("expert", "add 1", "expert", "jump", "expert")
    assert rewards.step_rewards(trajectory) == [1, 0, 1, 0, 1]
    shouted = [
        replace(s, action=f"  {s.action.upper()} ", reply=s.action) for s in trajectory.steps
    ]
    assert rewards.step_rewards(replace(trajectory, steps=tuple(shouted))) == [1, 0, 1, 0, 1]
    assert rewards.step_rewards(replace(trajectory, steps=())) == []


def test_an_expert_that_plans_from_the_reset_is_asked_while_it_is_followed():
    right = envs.make(GUESS, split="train")
    right.reset(seed=0, options={"task_id": "large/0"})
    ((_, secret),) = right.expert_plan()
    wrong = str(int(secret) % 8 + 1)
    game = {"env_id": GUESS, "task": "large/0"}
    assert rewards.step_rewards(played(secret, **game)) == [1]
    assert rewards.step_rewards(played(wrong, secret, **game)) == [0, 0]
    with pytest.raises(ValueError, match="plans from the reset only"):
        rewards.step_rewards(played(secret, **game), "reach")


def test_what_is_in_reach():
    """Up to twelve steps of at most 3: small steps lose nothing while enough of them are left."""
    trajectory = played("add 1", "add 1", "jump", "jump", "jump", "jump", "jump")
    judged = rewards.step_rewards(trajectory, "reach")
    start = int(trajectory.steps[0].observation.rstrip(".").rsplit(" ", 1)[1])
    needed = -(-(25 - start) // 3)
    assert judged[0] == 0
    assert needed <= 12
    assert min(judged) == pytest.approx(sum(judged))  # lost at one step
    assert sum(judged) < 0
    first_lost = next(i for i, value in enumerate(judged) if value)
    left, number = 12 - first_lost - 1, start + min(first_lost + 1, 2)
    assert 3 * left < 25 - number  # from there on the goal is out of reach
    assert 3 * (left + 1) >= 25 - (start + min(first_lost, 2))  # before, it was not


def test_one_judge_for_many_trajectories():
    with rewards.judge("expert") as judge:
        before = toy_env.ToyEnv.opened
        for seed in range(3):
            trajectory = played("expert", "add 1", seed=seed)
            assert rewards.step_rewards(trajectory, judge) == judge(trajectory) == [1, 0]
        assert toy_env.ToyEnv.opened - before == 3 + 1  # each `played`, and the judge's own
        assert judge(played("expert", size=25)) == [1]
    assert toy_env.ToyEnv.opened - before == 3 + 1 + 2


def test_what_cannot_be_judged(tmp_path):
    trajectory = played("expert", "add 1")
    other = replace(trajectory.steps[1], observation="Another world.")
    changed = replace(trajectory, steps=(trajectory.steps[0], other))
    for judge in ("expert", "reach"):
        with pytest.raises(ValueError, match="differs from step 2"):
            rewards.step_rewards(changed, judge)
        with pytest.raises(ValueError, match="no task 'odd/8'"):
            rewards.step_rewards(replace(trajectory, task_id="odd/8"), judge)
    ended = played("add 3", "add 3", "add 3", task="odd/7", seed=1, size=1)
    longer = replace(ended, steps=(*ended.steps, ended.steps[-1]))
    with pytest.raises(ValueError, match="cannot be played again"):
        rewards.step_rewards(longer)
    with pytest.raises(UsageError, match="importing a module runs its code"):
        rewards.step_rewards(replace(trajectory, env="os.path2:Evil-v0"))
    with pytest.raises(UsageError, match="name expert, reach, or the directory"):
        rewards.judge(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("method: sft\n")
    with pytest.raises(UsageError, match="holds no discriminator"):
        rewards.judge(tmp_path)


@pytest.mark.parametrize("rank", [0, 2], ids=["policy", "adapter"])
def test_the_discriminator_of_a_run(config, rank):  # noqa: F811
    """Its rewards are those that the run's own discriminator gives, for any trajectory."""
    config.method, config.env, config.env_args = "inverse", toy_env.ID, {"size": 6}
    config.policy.max_new_tokens, config.sft.epochs = 4, 2
    config.reflection.iterations, config.evaluation.limit = 1, 2
    judge = config.inverse.discriminator
    judge.rank, judge.learning_rate, judge.batch_size = rank, 1e-2, 16
    judge.max_accuracy, judge.chance_margin = 1.1, -1.0
    config.ppo.baseline = "group"
    training.run(config)
    trajectories = [played("add 1", "add 3", "jump", task=task) for task in ("odd/9", "even/10")]
    with rewards.judge(config.output) as judging:
        judged = [judging(trajectory) for trajectory in trajectories]
    assert [len(row) for row in judged] == [3, 3]
    assert len({round(value, 5) for row in judged for value in row}) > 1
    assert rewards.step_rewards(trajectories[0], config.output) == pytest.approx(judged[0])
    root = Path(config.output)
    policy = Policy.load(config.policy, root / "base", config.seed)
    with discriminator.attach(policy, judge, root / "entering", config.seed) as own:
        own.load(root / "artifacts" / "iteration-1" / discriminator.WEIGHTS)
        env = envs.make(config.env)
        encoded = policy.codec.encode(trajectories[1].messages(env.prompt, config.prompt))
        logits = own.logits(StepTree.of(encoded))
    torch.testing.assert_close(
        torch.tensor(judged[1]), discriminator.rewards_of([logits], "log_d")[0]
    )
    long = replace(trajectories[0], steps=trajectories[0].steps * 200)
    with rewards.judge(root, iteration=1, device="cpu") as judging:
        with pytest.raises(ValueError, match="the discriminator's context"):
            judging(long)
        assert judging(replace(long, steps=())) == []
    with pytest.raises(UsageError, match="no discriminator of iteration 7"):
        rewards.judge(root, iteration=7)
