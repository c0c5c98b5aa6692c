"""A training run: what the methods share, from expert data to the final table.

A method (`training/methods/`) is a function of a `TrainingRun`. It works in named stages; a stage
that is done is never done again, so a run that was killed resumes in the stage it was in (and
within it from the newest checkpoint).
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from stepagent import agents, command_line, envs
from stepagent.agents import nano, trained
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import Prompt
from stepagent.envs.trajectory import Trajectory
from stepagent.files import is_file, parse_json, read_text, write_atomically, write_text
from stepagent.training.config import Config
from stepagent.training.data import Sample, encode, shown_otherwise
from stepagent.training.policy import Policy
from stepagent.training.runs import budget, interrupts, model_card, processes, times
from stepagent.training.runs.budget import Budget
from stepagent.training.runs.directory import BASE, RunDirectory, RunError, WrongOptions
from stepagent.training.runs.estimates import estimate
from stepagent.training.runs.expert import check_inputs, load_expert
from stepagent.training.runs.options import flat
from stepagent.training.runs.scores import Scores
from stepagent.training.runs.stage import Stage
from stepagent.training.sampler.interface import Sampler
from stepagent.training.sampler.local import LocalSampler
from stepagent.training.sampler.vllm import States, VllmSampler


@dataclass
class State:
    """What `stages.json` holds."""

    done: list[str] = field(default_factory=list)
    """Stages in order."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stage → what it reports."""
    budget: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage → what it has used (`runs.budget`)."""
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stage, or `evaluation` → what its time went into (`runs.times`), in the start that ended
    it."""
    seconds: float = 0.0
    """Spent so far, over all starts."""


class TrainingRun:
    """Opens the run's directory, gathers expert data and loads the policy.

    Errors that can be foreseen are raised here: unknown environment, model without chat template,
    prompt too long for the context, trajectories of another environment or made under another
    prompt; and what `check_files` raises (`Method.check_files`). All but the lengths are checked
    before the expert plays.
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        check_files: Callable[[Config, Prompt], None] = lambda config, prompt: None,
    ):
        if not processes.is_main():
            console = Console(quiet=True)
        self.config, self.console = config, console
        self.started = time.monotonic()
        env = envs.make(config.env, split="train", **config.env_args)
        self.prompt = env.prompt
        env.close()
        with processes.main_first():
            check_inputs(config, self.prompt)
            check_files(config, self.prompt)
        self.style = config.prompt
        """How conversations are written; a method may add to the configuration's (NAT)."""
        with processes.main_first():
            text = command_line.dump(config)
            self.directory = RunDirectory(config.output, text, processes.is_main())
            self.origin = nano.origin(config.policy.model)
            """Which model the run begins from, as far as the name alone does not say so."""
            if self.origin:
                self.directory.begin_from(self.origin)
        if self.directory.resumed:
            console.print(f"Resuming the run in {self.directory.path}", markup=False)
        self._state_file = self.directory.path / "stages.json"
        self.state = self._read_state()
        self._seconds_before = self.state.seconds
        self._stages: list[str] = []
        """The stages so far, done now or before."""
        self._stale = False
        """Whether the policy in memory is older than that of the newest stage."""
        with processes.main_first():
            trajectories = load_expert(config, self.directory, self.prompt, console)
            self._make_base(trajectories)
        self.policy = self._load()
        self.samples, left_out = encode(
            trajectories, self.policy.codec, self.prompt, config.prompt, self.policy.context
        )
        """The expert's trajectories as tokens."""
        self._describe(left_out)
        self.data_notes: dict[str, int] = {}
        """What is to know about the trajectories that are learned from: reason → how often."""
        self.check_prompts(self.samples)
        self.times = times.Times()
        self.directory.metrics.report_to(
            config.report_to, self.directory.path.name, flat(yaml.safe_load(text))
        )
        self.sampler = self._open_sampler()
        self.scores = Scores(self.directory.path / "eval", config, console)

    def _read_state(self) -> State:
        """What `stages.json` holds. Raises RunError where it is damaged, or names a policy that is
        gone."""
        if not is_file(self._state_file):
            return State()
        try:
            state = State(**parse_json(read_text(self._state_file)))
            figures = [state.figures[name] for name in state.done]
            if not all(isinstance(f, dict) for f in figures) or not state.done:
                raise ValueError("it names no stage")
            state.seconds = float(state.seconds)
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{self._state_file} is damaged ({error}): restore it, or delete it to do all "
                "stages again"
            ) from None
        if not self.directory.has_policy(state.done[-1]):
            raise RunError(
                f"{self.directory.policy(state.done[-1])} is missing, though its stage is done: "
                f"restore it, or delete {self._state_file} to do all stages again"
            )
        return state

    def check_space(self, policies: int) -> None:
        """Says what the run needs. Raises RunError where the disk cannot hold so many policies and
        what training adds, but for what is there from an earlier start."""
        needed = self.bytes_needed(policies)
        longest = max(sample.encoded.longest for sample in self.samples)
        tokens = max(longest, self.config.reflection.pack_tokens)
        free = shutil.disk_usage(self.directory.path).free
        text = estimate(self.policy, tokens, needed).text(free)
        self.console.print(f"The run {text}", markup=False, soft_wrap=True)
        weights = self.directory.path.rglob("*.safetensors")
        held = sum(p.stat().st_size for p in weights if p.parent.name != BASE)
        self.directory.check_space(needed - held, "policies and checkpoints")

    def bytes_needed(self, policies: int) -> int:
        """About what the run takes on disk at most: so many policies (with `final` and `entering`),
        and two checkpoints at a time (the new one is written before the old one is deleted), each
        with AdamW's two moments."""
        return self.policy.saved_bytes() * (policies + 2 + 2 * 3)

    def _make_base(self, trajectories: Sequence[Trajectory]) -> None:
        """Builds the model `tiny`, whose tokens come from the trajectories, unless it exists."""
        base = self.directory.path / BASE
        if self.config.policy.model == "tiny" and not base.is_dir():
            texts = [
                message["content"]
                for trajectory in trajectories
                for message in trajectory.messages(self.prompt, self.config.prompt)
            ]
            policy = Policy.tiny(self.config.policy, texts, self.config.seed)
            write_atomically(base, policy.save)

    def _load(self) -> Policy:
        is_tiny = self.config.policy.model == "tiny"
        path = self.directory.path / BASE if is_tiny else None
        policy = Policy.load(self.config.policy, path, self.config.seed)
        if self.config.prompt.format == "tools":
            policy.use_tools(self.prompt.tools)
        return policy

    def _open_sampler(self) -> Sampler:
        """What the configuration names. A new run publishes the untrained policy: an engine that
        cannot serve it is to be known before hours of training."""
        if not self.config.sampler.urls:
            return LocalSampler()
        states = States(
            longest=max(len(s.encoded.state(-1)) for s in self.samples),
            probe=self.samples[0].encoded.path(len(self.samples[0].encoded.ids)),
        )
        report = partial(self.console.print, markup=False, soft_wrap=True)
        sampler = VllmSampler(self.config.sampler, self.config.output, states, report)
        if not self.state.done:
            sampler.publish(self.policy)
        return sampler

    def player(self, name: str, **options: Any) -> TransformersAgent:
        """The policy as it is now, as an agent; the options are further ones of
        `TransformersAgent`."""
        self.sampler.publish(self.policy)
        return self.sampler.player(
            name=name,
            **asdict(self.style),
            template=self.policy.config.template,
            max_new_tokens=self.policy.config.max_new_tokens,
            **options,
        )

    def restart(self) -> None:
        """Replaces the trained policy by the untrained one, as it was before SFT."""
        self.sampler.withdraw()
        del self.policy
        gc.collect()  # a trainer refers to its model in cycles, and there may be no room for both
        self.policy = self._load()
        self._stale = True

    def _describe(self, left_out: dict[str, int]) -> None:
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

    def check_prompts(self, samples: Sequence[Sample]) -> None:
        """Says, and notes, where a server's model was shown other tokens than are learned from."""
        steps, warning = shown_otherwise(samples, self.policy.codec)
        if steps:
            note = "steps: a server's model was shown other tokens"
            self.data_notes[note] = self.data_notes.get(note, 0) + steps
            self.console.print(warning, style="yellow", markup=False, soft_wrap=True)

    # Stages -----------------------------------------------------------------------------------

    @contextmanager
    def stage(self, name: str, seed: int | None = None) -> Iterator[Stage]:
        """A stage of the run: `with run.stage("sft") as stage:`.

        The body trains `run.policy`, unless `stage.done`. When it ends without an error, the policy
        and `stage.figures` are kept, and the policy is scored where the configuration says so.
        `seed` is the run's own by default.
        """
        stage = Stage(
            name,
            self.directory,
            seed=self.config.seed if seed is None else seed,
            checkpoint_seconds=self.config.checkpoint_seconds,
            console=self.console,
            keep_optimiser=self.config.reflection.keep_optimiser,
            earlier=tuple(self._stages),
            done=name in self.state.done,
            sampler=self.sampler,
            times=self.times,
            figures=dict(self.state.figures.get(name, {})),
        )
        if not stage.done:
            self._refresh()
        started = time.monotonic()
        yield stage
        if stage.done:
            self._stale = True
        else:
            used = budget.of_stage(self.directory, name, stage.figures)
            seconds = round(time.monotonic() - started, 1)
            self.state.budget[name] = asdict(replace(used, seconds=seconds))
            flops = times.flops_per_token(self.policy.model)
            self.state.times[name] = times.of_stage(self.times, flops, self._peak())
            self.directory.metrics.track(name, used.updates, self.state.times[name])
            with interrupts.held():
                self._keep(stage)
        self._stages.append(name)
        if self.config.evaluation.every_iteration:
            self.score(name)

    def _peak(self) -> float:
        """FLOP/s of all processes' devices; 0 where they are not known."""
        own = self.config.peak_tflops * 1e12 or times.peak_flops(self.policy.device)
        return own * processes.count()

    def _keep(self, stage: Stage) -> None:
        self._stale = False  # the policy in memory is the newest
        self.directory.finish_stage(stage.name, self._save_policy)
        processes.wait()
        self.state.done.append(stage.name)
        self.state.figures[stage.name] = stage.figures
        self._save_state()  # before the policy that it started from is deleted
        if not self.config.keep_policies:
            # The one before may have drawn the practice of the iteration to come.
            self._drop_policy(2 + self.config.reflection.off_policy_iterations)

    def _save_policy(self, path: Path) -> None:
        """The policy as it is now, with how to prompt it."""
        self.policy.save(path)
        config = self.config.policy
        trained.write(path, self.style, config.max_new_tokens, config.template)

    def _drop_policy(self, number: int) -> None:
        """Deletes the policy of the stage that is the number-th from the last."""
        if self.directory.main and len(self.state.done) >= number:
            path = self.directory.policy(self.state.done[-number])
            shutil.rmtree(path, ignore_errors=True)

    def budget(self) -> dict[str, float] | None:
        """What all stages have used; None where an older version has made one of them."""
        if any(stage not in self.state.budget for stage in self.state.done):
            return None
        labels = sum(len(sample.encoded.replies) for sample in self.samples)
        used = (Budget(**self.state.budget[stage]) for stage in self.state.done)
        return asdict(sum(used, Budget(expert_labels=labels)))

    @property
    def stopped(self) -> bool:
        """Whether one of the stages so far has ended the method (`Stage.stop`)."""
        return any(self.state.figures[name].get("stopped") for name in self._stages)

    def entering(self) -> Path:
        """The policy as it entered the method (after SFT), saved once and never replaced."""
        path = self.directory.path / "entering"
        with processes.main_first():
            if not path.is_dir():
                self._refresh()
                write_atomically(path, self._save_policy)
        return path

    def _refresh(self) -> None:
        """Loads the policy of the newest stage, where the one in memory is older."""
        if self._stale and self._stages:
            self.policy.load_weights(self.directory.policy(self._stages[-1]))
        self._stale = False

    def _save_state(self) -> None:
        self.state.seconds = self._seconds_before + time.monotonic() - self.started
        if self.directory.main:
            write_text(self._state_file, json.dumps(asdict(self.state), indent=1))

    # Scores -----------------------------------------------------------------------------------

    def score(self, name: str, agent: str = "policy") -> None:
        """Plays the evaluation's tasks with the policy, or another agent; resumes a partial one.

        Several processes share the tasks.
        """
        if not processes.gather(self._is_scored(name))[0]:  # as the main one sees it
            with self.times.of("scoring"):
                self.scores.play(name, self._player(name, agent))
            spent = self.state.times.setdefault("evaluation", {})
            for kind, seconds in self.times.take().items():
                spent[kind] = round(spent.get(kind, 0.0) + seconds, 3)
        if self.directory.main and agent == "policy" and not self._agreement_is_known(name):
            self._refresh()
            self.scores.measure_agreement(name, self.policy, self.prompt, self.style)
        processes.wait()

    def _is_scored(self, name: str) -> bool:
        """Whether all its tasks were played, or the policy that could play them is gone."""
        return bool(self.scores.read(name).get("complete")) or self._is_deleted(name)

    def _agreement_is_known(self, name: str) -> bool:
        """Whether it was measured, is not wanted, or cannot be measured any more."""
        known = not self.config.evaluation.agreement or self.scores.has_agreement(name)
        return known or self._is_deleted(name)

    def _is_deleted(self, name: str) -> bool:
        """Whether the policy of a stage is gone (`keep_policies`)."""
        return name in self.state.done and not self.directory.has_policy(name)

    def _player(self, name: str, agent: str) -> Any:
        if agent != "policy":
            return agents.make_agent(agent)
        self._refresh()
        evaluation = self.config.evaluation
        return self.player(name, temperature=evaluation.temperature, batch_size=evaluation.workers)

    def finish(self) -> dict[str, Any]:
        """Writes `final/` and `summary.json`, prints the table; returns the summary."""
        if not self._stages:
            raise WrongOptions(
                "nothing was trained: sft.epochs is 0, and the method has no iteration after it"
            )
        final = self.directory.path / "final"
        self._refresh()
        if self.directory.main:
            write_atomically(final, self._save_policy)
        if not self.config.keep_policies:
            self._drop_policy(2)
        if not self.config.evaluation.every_iteration:
            self.score(self.state.done[-1])
        for agent in self.config.evaluation.agents:
            self.score(agent, agent)
        self._save_state()
        summaries = self.scores.of_run(self.state.done)
        summary = {
            "method": self.config.method,
            "env": self.config.env,
            "env_args": self.config.env_args,
            "seed": self.config.seed,
            "origin": self.origin or {"model": self.config.policy.model},
            "expert_trajectories": len(self.samples),
            "data_notes": self.data_notes,
            "scores": summaries,
            "agreement": self.scores.agreements(self.state.done),
            "figures": self.state.figures,
            "budget": self.budget(),
            "times": self.state.times,
            "seconds": round(self.state.seconds, 1),
            "final": str(final),
            "prompt": asdict(self.style),
            "template": self.config.policy.template,
        }
        if self.directory.main:
            write_text(self.directory.path / "summary.json", json.dumps(summary, indent=1))
        if self.directory.main and self.config.push_to_hub:
            shutil.copy(self.directory.path / "config.yaml", final)
            facts = {**summary, "adapter": self.policy.has_adapter}
            text = model_card.card(facts, self.config.policy.model)
            model_card.push(self.config.push_to_hub, final, text)
        self.console.print(self.scores.table(summaries))
        return summary

    def close(self) -> None:
        """Frees the run's directory and its sampler, for another run in this process. Safe to call
        twice."""
        self.sampler.close()
        self.directory.close()
