"""A training run under way: what the methods share, from expert data to the final table.

A method (`training/sft.py`, `training/implicit.py`, …) is a function of a `Session`. It does its
work in named stages; a stage that is done is never done again, so a run that was killed goes on
from the stage it was in (and within it from the newest checkpoint).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stepagent import agents, command_line, envs
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import read
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.paper import LABELS
from stepagent.files import write_atomically, write_text
from stepagent.training import processes
from stepagent.training.collect import collect
from stepagent.training.config import Config
from stepagent.training.dataset import encode, select
from stepagent.training.policy import Policy
from stepagent.training.rundir import RunDir, RunError

OnUpdate = Callable[[int, dict[str, float]], None]


class Session:
    """Opens the run's directory, gathers expert data and loads the policy.

    What can be known to fail later fails here: unknown environment, model without chat template,
    prompt too long for the context, too little disk space, trajectories of another environment or
    made under another prompt.
    """

    def __init__(self, config: Config, console: Console):
        if not processes.is_main():
            console = Console(quiet=True)
        self.config, self.console = config, console
        self.begun = time.monotonic()
        env = envs.make(config.env, split="train", **config.env_args)
        self.prompt = env.prompt
        env.close()
        self.style = config.prompt
        """How conversations are written; a method may add to the configuration's (NAT)."""
        with processes.main_first():
            self.rundir = RunDir(config.output, command_line.dump(config), processes.is_main())
        if self.rundir.resumed:
            console.print(f"Going on with the run in {self.rundir.path}", markup=False)
        self._state = self.rundir.path / "stages.json"
        self.state: dict[str, Any] = {"done": [], "figures": {}, "seconds": 0.0}
        if self._state.is_file():
            self.state = json.loads(self._state.read_text())
        self._seconds_before = self.state["seconds"]
        self._last: str | None = None
        self._stale = False
        with processes.main_first():
            trajectories = self._expert()
            self._make_base(trajectories)
        self.policy = self._load()
        self.samples, left_out = encode(
            trajectories, self.policy.codec, self.prompt, config.prompt, self.policy.context
        )
        self._describe(len(trajectories), left_out)
        self.rundir.check_space(self._bytes(), "policies and checkpoints")

    def _bytes(self) -> int:
        """About what the run takes on disk at most: its policies, and two checkpoints at a time
        (the new one is written before the old one goes), each with AdamW's two moments."""
        method, one = self.config.method, self.policy.saved_bytes()
        iterations = {
            "sft": 0,
            "spin": self.config.preference.iterations,
            "eto": self.config.preference.iterations,
            **dict.fromkeys(("implicit", "inverse", "ppo"), self.config.reflection.iterations),
        }.get(method, 1)
        kept = 1 + iterations if self.config.keep_policies else 2
        if method == "inverse" and not self.config.inverse.discriminator.rank:
            kept += iterations  # the discriminators
        return one * (kept + 2) + 2 * 3 * one  # with `final` and `entering`

    def _expert(self) -> list[envs.Trajectory]:
        """The expert's trajectories: from the file that the configuration names, or played now."""
        wanted = self.config.expert
        path = Path(wanted.trajectories) if wanted.trajectories else None
        if path is None:
            path = collect(
                self.config.env,
                "expert",
                self.rundir.path / "expert",
                env_args=self.config.env_args,
                limit=wanted.limit or None,
                min_reward=wanted.min_reward,
                workers=wanted.workers,
                seed=self.config.seed,
                console=self.console,
            )
        found = read(path)
        scored = self.config.evaluation
        if scored.split != "train" and (scored.env or self.config.env) == self.config.env:
            seen = sum(t.split == scored.split for t in found)
            if seen:
                raise RunError(
                    f"{path} holds {seen} trajectories of the split {scored.split!r}, on which the "
                    "policy is to be scored (evaluation.split): train on another split"
                )
        foreign = {t.env for t in found} - {self.config.env}
        if foreign:
            raise RunError(
                f"{path} holds trajectories of {', '.join(sorted(foreign))}, but this run "
                f"trains on {self.config.env}"
            )
        self._check_prompt(path, found)
        return select(found, wanted.limit, wanted.min_reward, self.config.seed)

    def _check_prompt(self, path: Path, found: Sequence[envs.Trajectory]) -> None:
        """Raises RunError for trajectories that were made under another prompt of the environment.

        Which parts of the prompt a conversation shows is the configuration's choice, so any of them
        will do. Trajectories that do not say (converted ones) are taken as they are.
        """
        parts = itertools.product((True, False), repeat=3)
        known = {self.prompt.checksum(PromptStyle(i, e, t)) for i, e, t in parts}
        foreign = [t for t in found if t.fingerprint.get("prompt", min(known)) not in known]
        if foreign:
            raise RunError(
                f"{path} holds {len(foreign)} trajectories made under another prompt than "
                f"{self.config.env} has now (the first: task {foreign[0].task_id}, prompt "
                f"{foreign[0].fingerprint['prompt']}): collect them again with training.collect"
            )

    def _make_base(self, trajectories: Sequence[envs.Trajectory]) -> None:
        """Makes the model `tiny`, whose tokens come from the trajectories, unless it is there."""
        base = self.rundir.path / "base"
        if self.config.policy.model == "tiny" and not base.is_dir():
            texts = [
                message["content"]
                for trajectory in trajectories
                for message in trajectory.messages(self.prompt, self.config.prompt)
            ]
            made = Policy.tiny(self.config.policy, texts, self.config.seed)
            write_atomically(base, made.save)

    def _load(self) -> Policy:
        own = self.config.policy.model == "tiny"
        path = self.rundir.path / "base" if own else None
        return Policy.load(self.config.policy, path, self.config.seed)

    def restart(self) -> None:
        """Puts the untrained policy, as it was before SFT, in the place of the trained one."""
        del self.policy
        self.policy = self._load()
        self._stale = True

    def _describe(self, trajectories: int, left_out: dict[str, int]) -> None:
        tokens = sum(len(s.encoded.ids) for s in self.samples)
        actions = sum(len(s.encoded.replies) for s in self.samples)
        note = "".join(
            f", {count} {reason.replace('_', ' ')}" for reason, count in left_out.items()
        )
        self.console.print(
            f"{len(self.samples)} expert trajectories ({actions:,} actions, {tokens:,} tokens"
            f"{note}); {self.policy.describe()}",
            markup=False,
        )

    # Stages -----------------------------------------------------------------------------------

    def stage(self, name: str, work: Callable[[], dict[str, float] | None]) -> None:
        """Does the work of a stage on `self.policy`, unless it is done, and keeps the policy."""
        if name not in self.state["done"]:
            self._refresh()
            figures = work()
            self._stale = False  # what `work` left is the newest
            self.rundir.finish_stage(name, self.policy.save)
            processes.wait()
            self.state["done"].append(name)
            self.state["figures"][name] = figures or {}
            self._save_state()  # before the one that it stands on goes
            if self.rundir.main and self._last and not self.config.keep_policies:
                shutil.rmtree(self.rundir.policy(self._last), ignore_errors=True)
        else:
            self._stale = True
        self._last = name

    def iterate(self, count: int, work: Callable[[int, str], dict[str, float]]) -> None:
        """`count` iterations, each a stage that `work` (number, name) does, scored if so wished.

        They end early after one whose figures say "stopped".
        """
        for number in range(1, count + 1):
            name = f"iteration-{number}"
            self.stage(name, functools.partial(work, number, name))
            if self.config.evaluation.every_iteration:
                self.score(name)
            if self.state["figures"][name].get("stopped"):
                break

    def entering(self) -> Path:
        """The policy as it entered the method (after SFT), kept whatever becomes of it."""
        path = self.rundir.path / "entering"
        with processes.main_first():
            if not path.is_dir():
                self._refresh()
                write_atomically(path, self.policy.save)
        return path

    def _refresh(self) -> None:
        """Loads the newest finished policy, where the one in memory is older."""
        if self._stale and self._last:
            self.policy.load_weights(self.rundir.policy(self._last))
        self._stale = False

    def _save_state(self) -> None:
        self.state["seconds"] = self._seconds_before + time.monotonic() - self.begun
        if not self.rundir.main:
            return
        write_text(self._state, json.dumps(self.state, indent=1))

    def note(self, text: str) -> None:
        """A line for whoever watches."""
        self.console.print(text, markup=False)

    @contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[OnUpdate]:
        """A progress bar with the latest loss; yields the callback that moves it."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=2) as bar:
            task = bar.add_task(title, total=total, note=unit)

            def move(done: int, figures: dict[str, float]) -> None:
                note = f"loss {figures['loss']:.3f}" if "loss" in figures else unit
                bar.update(task, completed=done, note=note)

            yield move

    # Scores -----------------------------------------------------------------------------------

    def score(self, name: str, agent: str = "policy") -> dict[str, Any]:
        """Plays the evaluation's tasks with the policy, or another agent; goes on where it was.

        Of several processes the main one plays.
        """
        if self.rundir.main:
            found = self._score(name, agent)
        processes.wait()
        if not self.rundir.main:
            found = self._scores(name)
        return found

    def _score(self, name: str, agent: str) -> dict[str, Any]:
        wanted, out = self.config.evaluation, self.rundir.path / "eval" / name
        summary = out / "summary.json"
        if summary.is_file():
            found = json.loads(summary.read_text())
            gone = name in self.state["done"] and not self.rundir.has_policy(name)
            if found.get("complete") or gone:
                return found
        if agent == "policy":
            self._refresh()
            player: Any = TransformersAgent(
                self.policy.model,
                self.policy.tokenizer,
                name=name,
                **dataclasses.asdict(self.style),
                max_new_tokens=self.policy.config.max_new_tokens,
                temperature=wanted.temperature,
                batch_size=wanted.workers,
            )
        else:
            player = agents.make_agent(agent)
        try:
            return evaluate(
                wanted.env or self.config.env,
                player,
                out,
                EvaluationOptions(
                    split=wanted.split,
                    limit=wanted.limit or None,
                    seed=self.config.seed,
                    workers=wanted.workers,
                    env_args=wanted.env_args if wanted.env else self.config.env_args,
                ),
                console=self.console,
            )
        finally:
            player.close()

    def finish(self) -> dict[str, Any]:
        """Writes `final/` and `summary.json`, prints the table; returns the summary."""
        stages = self.state["done"]
        if self._last is None:
            raise RunError("nothing was trained: sft.epochs and reflection.iterations are both 0")
        final = self.rundir.path / "final"
        self._refresh()
        if self.rundir.main:
            write_atomically(final, self.policy.save)
        wanted = self.config.evaluation
        if not wanted.every_iteration:
            self.score(stages[-1])
        for agent in wanted.agents:
            self.score(agent, agent)
        self._save_state()
        first, last = (
            [a for a in wanted.agents if a != "expert"],
            [a for a in wanted.agents if a == "expert"],
        )
        rows = {n: self._scores(n) for n in (*first, *stages, *last) if self._scores(n)}
        summary = {
            "method": self.config.method,
            "env": self.config.env,
            "env_args": self.config.env_args,
            "seed": self.config.seed,
            "expert_trajectories": len(self.samples),
            "scores": rows,
            "figures": self.state["figures"],
            "seconds": round(self.state["seconds"], 1),
            "final": str(final),
            "prompt": dataclasses.asdict(self.style),
        }
        text = json.dumps(summary, indent=1)
        if self.rundir.main:
            write_text(self.rundir.path / "summary.json", text)
        self.console.print(self._table(rows))
        self.rundir.close()
        return summary

    def _scores(self, name: str) -> dict[str, Any]:
        path = self.rundir.path / "eval" / name / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _table(self, rows: dict[str, dict[str, Any]]) -> Table:
        wanted = self.config.evaluation
        any_row = next(iter(rows.values()), {})
        table = Table(
            title=f"{wanted.env or self.config.env}, split {wanted.split}, "
            f"{any_row.get('episodes', 0)} unseen tasks"
        )
        for name in ("agent", "score", "95 % interval", "success", "valid actions", "steps"):
            table.add_column(name, justify="left" if name == "agent" else "right")
        title = LABELS[self.config.method]
        for name, row in rows.items():
            low, high = row["reward_ci95"]
            table.add_row(
                LABELS.get(name, name).replace("iteration-", f"{title}, iteration "),
                f"{row['reward_mean']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{row['success_rate']:.0%}",
                f"{row['valid_rate']:.0%}",
                f"{row['steps_mean']:.1f}",
            )
        return table
