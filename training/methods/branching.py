"""Practice actions played in the environment, each behind the expert's replayed steps.

The expert's first i replies are replayed and the agent's i-th action is taken. Two things can then
be asked. Does it lead to the expert's next observation and score? Then it is as right as the
expert's (`reflection.equal` "effect"). And what do episodes return in which the policy plays on
(`methods.step_values`)?

Only actions that differ from the expert's are played, by parallel environments. Outcomes are
written to the stage's artifacts as episodes end; a run that was killed plays the rest. An expert
trajectory that does not give its recorded observations again is counted (`not_replayed`): its
actions have no value, and only their texts can be compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from stepagent.envs.trajectory import Trajectory
from stepagent.eval.env_workers import Start
from stepagent.files import open_file
from stepagent.training.data import Sample
from stepagent.training.methods.practice import action_of
from stepagent.training.methods.rollouts import make_player, play_starts, salt, steady
from stepagent.training.runs import processes
from stepagent.training.runs.lines import complete_lines
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.sampling import Replies


@dataclass(frozen=True)
class Case:
    """An episode to play: the expert's first `steps` replies, an action, perhaps the policy."""

    sample: int
    """Number of the expert's trajectory"""
    steps: int
    reply: str | None = None
    """None: no other action"""
    play_on: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    replayed: bool
    """Whether the expert's steps gave their recorded observations, and the action was taken"""
    observation: str
    """The last one"""
    score: float
    success: bool
    drawn: int
    """Steps that the policy took itself"""
    error: str = ""
    valid: bool = True
    """Whether the environment understood and allowed the last action; files of earlier versions do
    not say."""


class Branching:
    """The states of some expert trajectories, in which any action can be played."""

    def __init__(self, run: TrainingRun, stage: Stage, samples: Sequence[Sample]):
        self.run, self.stage, self.samples = run, stage, samples

    @cached_property
    def replayable(self) -> list[bool]:
        """Of each trajectory, whether it gives its observations again."""
        cases = [Case(i, len(s.trajectory.steps)) for i, s in enumerate(self.samples)]
        replayable = [outcome.replayed for outcome in self.play("replays", cases)]
        lost = replayable.count(False)
        self.stage.figures["not_replayed"] = float(lost)
        if lost:
            self.stage.note(
                f"{lost} of {len(cases)} expert trajectories do not give the same observations "
                "when they are replayed; their actions are not played"
            )
        return replayable

    # Effects ------------------------------------------------------------------------------------

    def with_expert_tokens(self, rows: list[Replies]) -> list[Replies]:
        """The replies with the expert's own tokens in place of those whose action has the effect of
        the expert's. rows[s] are those drawn in the states of the s-th trajectory."""
        codec = self.run.policy.codec
        actions = [
            [[(s, i, action_of(codec, ids)) for ids in drawn] for i, drawn in enumerate(replies)]
            for s, replies in enumerate(rows)
        ]
        texts: dict[tuple[int, int, str], str] = {}
        for s, replies in enumerate(rows):
            for i, drawn in enumerate(replies):
                for key, ids in zip(actions[s][i], drawn, strict=True):
                    if self.replayable[s] and list(ids) != self._expert_ids(s, i):
                        texts.setdefault(key, self.text(ids))
        cases = [Case(s, i, text) for (s, i, _), text in texts.items()]
        outcomes = zip(texts, self.play("effects", cases), strict=True)
        equal = {key for key, outcome in outcomes if self._is_expert_effect(*key[:2], outcome)}
        keys = [key for of_sample in actions for drawn in of_sample for key in drawn]
        self.stage.figures["same_by_effect"] = sum(k in equal for k in keys) / max(1, len(keys))

        def own(key: tuple[int, int, str], ids: Sequence[int]) -> list[int]:
            return self._expert_ids(*key[:2]) if key in equal else list(ids)

        return [
            [list(map(own, *drawn)) for drawn in zip(of_sample, replies, strict=True)]
            for of_sample, replies in zip(actions, rows, strict=True)
        ]

    def _is_expert_effect(self, sample: int, step: int, outcome: Outcome) -> bool:
        expert = self.samples[sample].trajectory
        is_last = step + 1 == len(expert.steps)
        score = expert.reward if is_last else sum(s.reward for s in expert.steps[: step + 1])
        return (
            outcome.replayed
            and outcome.observation == observations(expert)[step + 1]
            and abs(outcome.score - score) < 1e-9
            and outcome.success == (is_last and expert.success)
        )

    # Playing ------------------------------------------------------------------------------------

    def play(self, name: str, cases: Sequence[Case]) -> list[Outcome]:
        """The outcomes, from `NAME.jsonl` among the artifacts where they were written before.
        Several processes share the cases. Raises RunError where ten episodes fail in a row."""
        [outcomes] = self._play(name, [name], cases)
        return outcomes

    def play_often(self, name: str, cases: Sequence[Case], times: int) -> list[list[Outcome]]:
        """`play` of every case several times, all of them together; the k-th outcomes are in
        `NAME-k.jsonl`."""
        return self._play(name, [f"{name}-{k}" for k in range(times)], cases)

    def _play(self, title: str, names: Sequence[str], cases: Sequence[Case]) -> list[list[Outcome]]:
        """The outcomes of all cases under each name."""
        done = {name: self._recorded(name) for name in names}
        processes.wait()  # all have read what there was, and share it out alike
        missing = [(name, n) for name in names for n in range(len(cases)) if n not in done[name]]
        if mine := missing[processes.rank() :: processes.count()]:
            rank = f".{processes.rank()}" if processes.count() > 1 else ""
            with (
                contextlib.ExitStack() as files,
                self.stage.progress(len(mine), f"episodes ({title})") as move,
                contextlib.closing(self._episodes(title, cases, mine)) as episodes,
            ):
                opened = {
                    name: files.enter_context(
                        open_file(self.stage.artifacts / f"{name}{rank}.jsonl", "a")
                    )
                    for name in names
                }
                for count, (name, n, outcome) in enumerate(
                    steady(episodes, lambda e: e[2].error), 1
                ):
                    opened[name].write(json.dumps({"case": n, **asdict(outcome)}) + "\n")
                    opened[name].flush()
                    move(count, {})
        processes.wait()
        done = {name: self._recorded(name) for name in names}
        return [[done[name][n] for n in range(len(cases))] for name in names]

    def _recorded(self, name: str) -> dict[int, Outcome]:
        files = [*self.stage.artifacts.glob(f"{name}.jsonl")]
        files += sorted(self.stage.artifacts.glob(f"{name}.[0-9]*.jsonl"))
        lines = [line for file in files for line in complete_lines(file)]
        return {line.pop("case"): Outcome(**line) for line in lines}

    def _episodes(
        self, title: str, cases: Sequence[Case], todo: Sequence[tuple[str, int]]
    ) -> Generator[tuple[str, int, Outcome], None, None]:
        """(name, number of the case) → the same, and its outcome, as episodes end."""
        player = make_player(self.run, f"{self.stage.name}-{title}")
        starts = [
            ((name, n), self.samples[cases[n].sample].trajectory.split, self._start(cases[n], name))
            for name, n in todo
        ]
        with contextlib.closing(play_starts(self.run, player, starts)) as played:
            for (name, n), trajectory in played:
                case = cases[n]
                yield name, n, outcome_of(case, trajectory, self.samples[case.sample])
        player.close()

    def _start(self, case: Case, name: str) -> Start:
        expert = self.samples[case.sample].trajectory
        replies = [step.text(self.run.style) for step in expert.steps[: case.steps]]
        if case.reply is not None:
            replies.append(case.reply)
        own = salt(self.run, f"{self.stage.name}-{name}")
        return Start(expert.task_id, expert.seed, tuple(replies), case.play_on, own)

    def _expert_ids(self, sample: int, step: int) -> list[int]:
        encoded = self.samples[sample].encoded
        start, end = encoded.replies[step]
        return encoded.ids[start:end]

    def text(self, ids: Sequence[int]) -> str:
        """A reply of the policy."""
        return self.run.policy.codec.decode(ids)


def observations(trajectory: Trajectory) -> list[str]:
    """All of an episode's, the last one included."""
    return [*(step.observation for step in trajectory.steps), trajectory.final_observation]


def outcome_of(case: Case, played: Trajectory, sample: Sample) -> Outcome:
    """What a case's episode shows."""
    seen, recorded = observations(played), observations(sample.trajectory)
    if not recorded[-1]:  # files of other projects may not have it
        seen, recorded = seen[: len(recorded) - 1], recorded[:-1]
    prefix = case.steps + (case.reply is not None)
    same = seen[: case.steps + 1] == recorded[: case.steps + 1]
    return Outcome(
        replayed=same and len(played.steps) >= prefix,
        observation=played.final_observation,
        score=played.reward,
        success=played.success,
        drawn=max(0, len(played.steps) - prefix),
        error=played.error,
        valid=not played.steps or played.steps[-1].valid,
    )
