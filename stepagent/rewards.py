"""A reward for every step of an episode, from the environment's expert or a trained discriminator.

    step_rewards(trajectory)                    # one reward per step, asking the expert
    step_rewards(trajectory, "runs/inverse")    # the discriminator of a run

Made for trainers of other projects, which know an episode's score alone: whatever they play becomes
a `Trajectory` (`envs.wrappers.RecordTrajectories` records one), and its list of rewards is what
their step-level or process rewards want. A judge is worth keeping where many episodes are judged:

    with judge("expert") as expert:
        rewards = [expert(trajectory) for trajectory in trajectories]

The judges:

    expert      1 where the expert would act so in this state, else 0
    reach       what the step does to the best score still in reach: 0 where nothing is lost
    DIRECTORY   of a run of `inverse`: what its discriminator gives, -log D(s, a) by default
                (`inverse.judge_reward`), high where the action looks like the expert's

`expert` knows one right action per state; `reach` all that are as good, but plays the episode once
more for each state in which the agent has left the expert's plan. Both play the recorded actions
again, so the trajectory's environment must be installed here, with its data.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from stepagent import command_line, envs
from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import UsageError
from stepagent.eval.load_runs import EvaluationRun
from stepagent.eval.recorded_env import check_id, recorded_env, safe_arguments
from stepagent.eval.regret import regret
from stepagent.files import is_file

EXPERT, REACH = "expert", "reach"


class Judge(ABC):
    """Rewards the steps of trajectories; a context manager that frees what it holds at its end."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> list[float]:
        """[steps]: a reward for each step, in order; [] for an episode without steps.

        Raises ValueError for a trajectory that cannot be judged, in words that say why.
        """

    def close(self) -> None:
        """Frees environments and models. Safe to call twice."""

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def step_rewards(trajectory: Trajectory, by: str | Path | Judge = EXPERT) -> list[float]:
    """[steps]: a reward for each step of an episode; `by` is a judge, or what `judge` makes one of.

    Raises what `judge` and the judge raise.
    """
    if isinstance(by, Judge):
        return by(trajectory)
    with judge(by) as judging:
        return judging(trajectory)


def judge(spec: str | Path, **arguments: Any) -> Judge:
    """A judge: `expert`, `reach`, or the directory of a run of `inverse`, whose newest
    discriminator it takes.

    `arguments` go to `ExpertJudge`, `ReachJudge` or `DiscriminatorJudge`. Raises UsageError for
    anything else, and for a run without a discriminator.
    """
    if spec == EXPERT:
        return ExpertJudge(**arguments)
    if spec == REACH:
        return ReachJudge(**arguments)
    return DiscriminatorJudge(spec, **arguments)


# The expert -------------------------------------------------------------------------------------


class _ReplayingJudge(Judge):
    """Keeps the environments of the last trajectory open, for those that follow.

    Parameters
    ----------
    env_args: arguments of the environment that replace the recorded ones, such as
        {"data": FOLDER} where the data has moved.
    """

    count = 1
    """Environments that it needs."""

    def __init__(self, env_args: dict[str, Any] | None = None):
        self.env_args = env_args or {}
        self._key, self._open = "", list[TextEnv]()

    def envs_of(self, trajectory: Trajectory) -> list[TextEnv]:
        """Environments as the trajectory records them. Raises UsageError for one that a file may
        not choose (see `eval.recorded_env`)."""
        run = EvaluationRun(trajectory.agent, Path("the trajectory"), (trajectory,), {})
        env_id, arguments = recorded_env(run, self.env_args)
        key = json.dumps([env_id, arguments], sort_keys=True, default=str)
        if key != self._key:
            self.close()
            self._open = [envs.make(env_id, **arguments) for _ in range(self.count)]
            self._key = key
        return self._open

    def close(self) -> None:
        while self._open:
            self._open.pop().close()
        self._key = ""


class ExpertJudge(_ReplayingJudge):
    """1 where the action is the one that the expert takes in this state, else 0, without regard to
    case and blanks. An expert that plans from the reset only is asked as long as the agent follows
    its plan; after that, steps get 0."""

    def __call__(self, trajectory: Trajectory) -> list[float]:
        (env,) = self.envs_of(trajectory)
        options = {"task_id": trajectory.task_id}
        observation, _ = env.reset(seed=trajectory.seed, options=options)
        plan = iter(() if env.expert_anywhere else env.expert_plan())
        follows, rewards = True, []
        for number, step in enumerate(trajectory.steps):
            if observation != step.observation:
                raise _changed(trajectory, number)
            expert = env.expert_action() if env.expert_anywhere else next(plan, None)
            agrees = expert is not None and _normalised(expert[1]) == _normalised(step.action)
            follows = agrees and (follows or env.expert_anywhere)
            rewards.append(float(follows))
            observation, _, terminated, truncated, _ = env.step(step.text())
            if (terminated or truncated) and number + 1 < len(trajectory.steps):
                raise _changed(trajectory, number + 1)
        return rewards


class ReachJudge(_ReplayingJudge):
    """What each step does to the score in reach: 0 where nothing is lost, below 0 by what is
    (`stepagent regret`, with its sign turned)."""

    count = 2

    def __call__(self, trajectory: Trajectory) -> list[float]:
        if not trajectory.steps:
            return []
        try:
            judged = regret(trajectory, *self.envs_of(trajectory))
        except NotImplementedError as error:
            raise ValueError(str(error)) from error
        if judged.changed:
            raise _changed(trajectory, len(judged.by_step))
        return [0.0 - lost for lost in judged.by_step]  # no -0.0


def _changed(trajectory: Trajectory, number: int) -> ValueError:
    return ValueError(
        f"the episode of {trajectory.task_id} (seed {trajectory.seed}) cannot be played again: it "
        f"differs from step {number + 1} on; `stepagent replay` shows how"
    )


def _normalised(action: str) -> str:
    return " ".join(action.split()).casefold()


# A discriminator --------------------------------------------------------------------------------


class DiscriminatorJudge(Judge):
    """What the discriminator of a run of `inverse` gives the actions.

    Parameters
    ----------
    run: the run's directory.
    iteration: whose discriminator; None: the newest there is.
    device: where it runs; None: as in the run.
    """

    def __init__(self, run: str | Path, iteration: int | None = None, device: str | None = None):
        from stepagent.training.config import Config
        from stepagent.training.methods import discriminator
        from stepagent.training.policy import Policy

        run = Path(run)
        weights = _weights(run, iteration, discriminator.WEIGHTS)
        options = ["--config", str(run / "config.yaml")]
        try:
            config = command_line.parse(Config, options, prog="stepagent.rewards")
        except SystemExit:
            raise UsageError(f"{run}/config.yaml cannot be read: restore the file") from None
        self.style, self.reward = config.prompt, config.inverse.judge_reward
        policy_config = config.policy
        if device is not None:
            policy_config.device = device
        check_id(config.env, str(run))
        arguments = safe_arguments(config.env_args, str(run), {})
        with closing(envs.make(config.env, split="train", **arguments)) as env:
            self.prompt = env.prompt
        base = run / "base"
        policy = Policy.load(policy_config, base if base.is_dir() else None, config.seed)
        if self.style.format == "tools":
            policy.use_tools(self.prompt.tools)
        self._open = ExitStack()
        self.discriminator = self._open.enter_context(
            discriminator.attach(
                policy, config.inverse.discriminator, run / "entering", config.seed
            )
        )
        self.discriminator.load(weights)
        self.codec = self.discriminator.codec or policy.codec

    def __call__(self, trajectory: Trajectory) -> list[float]:
        from stepagent.training.methods.discriminator import rewards_of
        from stepagent.training.trees.tree import StepTree

        if not trajectory.steps:
            return []
        encoded = self.codec.encode(trajectory.messages(self.prompt, self.style))
        if encoded.longest > self.discriminator.context:
            raise ValueError(
                f"the episode of {trajectory.task_id} has {encoded.longest} tokens, the "
                f"discriminator's context {self.discriminator.context}"
            )
        logits = self.discriminator.logits(StepTree.of(encoded))
        return rewards_of([logits], self.reward)[0].tolist()

    def close(self) -> None:
        self._open.close()


def _weights(run: Path, iteration: int | None, name: str) -> Path:
    """The file of a run's discriminator."""
    if not is_file(run / "config.yaml"):
        raise UsageError(f"no judge {str(run)!r}: name expert, reach, or the directory of a run")
    number = "*" if iteration is None else iteration
    folders = (run / "artifacts").glob(f"iteration-{number}")
    numbered = {int(f.name.rpartition("-")[2]): f / name for f in folders if is_file(f / name)}
    if not numbered:
        which = "" if iteration is None else f" of iteration {iteration}"
        raise UsageError(
            f"{run} holds no discriminator{which} (artifacts/iteration-N/{name}): name the "
            "directory of a run of inverse"
        )
    return numbered[max(numbered)]
