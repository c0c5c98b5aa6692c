"""The pass of a training whose policy agrees best with the expert on dev trajectories.

Every pass is measured once (`artifacts/STAGE/dev/UPDATE/`), the best policy so far is kept
(`artifacts/STAGE/best/`). A run that was killed measures the passes after its checkpoint again,
with the same result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stepagent.eval import agreement
from stepagent.eval.agreement import Agreement, Measure, TrajectoryAgreement
from stepagent.eval.paired import detectable
from stepagent.files import parse_json, read_text, write_atomically
from stepagent.training.policy import Policy
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage


@dataclass
class Selection:
    """Chooses among the passes of a stage."""

    stage: Stage
    policy: Policy
    read_dev: Callable[[], tuple[list[TrajectoryAgreement], int]]
    """The policy's agreement on the dev trajectories, and how many were left out"""
    patience: int
    """Passes without a better one after which training ends; 0: never."""
    measure: Literal["step_match", "loss"] = "step_match"
    """What decides; where step matches are equal, the loss does."""

    @property
    def _best(self) -> Path:
        return self.stage.artifacts / "best"

    def after_pass(self, update: int) -> bool:
        """Measures the policy after a pass that ended with this update, and keeps it where it is
        the best so far. True where training shall end. All processes take part.

        Raises ValueError where there are fewer than two trajectories to choose by.
        """
        ends, problem = False, ""
        if processes.is_main():
            rows, left_out = self.read_dev()
            if len(rows) < 2:
                problem = (
                    f"{self.stage.name}: the dev split has {len(rows)} expert trajectories to "
                    f"choose by ({left_out} left out), and at least 2 are needed: set sft.select "
                    "to last"
                )
            else:
                agreement.save(self._folder(update), rows, left_out)
                passes = self._passes(update)
                best = self._best_of(passes)
                if best == update:
                    write_atomically(self._best, self.policy.save)
                ends = 0 < self.patience <= sum(best < later for later in passes)
        ends, problem = processes.gather((ends, problem))[0]
        if problem:
            raise ValueError(problem)
        return ends

    def finish(self) -> None:
        """Loads the best policy; its figures go to the stage, what the choice is worth to the
        console."""
        processes.wait()
        self.policy.load_weights(self._best)
        passes = self._passes()
        best = self._best_of(passes)
        self.stage.figures |= {
            "passes": float(len(passes)),
            "chosen_pass": float(sorted(passes).index(best) + 1),
            "dev_step_match": passes[best].step_match,
            "dev_loss": passes[best].loss,
        }
        self._say_worth(passes, best)

    def drop(self) -> None:
        """Deletes the policy that was kept, once the stage has it."""
        if processes.is_main():
            shutil.rmtree(self._best, ignore_errors=True)

    def _folder(self, update: int) -> Path:
        return self.stage.artifacts / "dev" / f"{update:07}"

    def _passes(self, until: int | None = None) -> dict[int, Agreement]:
        """Update at the end of each pass → its agreement; passes after `until` are left out, which
        a killed run may have measured."""
        passes = {}
        for path in sorted((self.stage.artifacts / "dev").glob(f"*/{agreement.SUMMARY}")):
            update = int(path.parent.name)
            if until is None or update <= until:
                passes[update] = Agreement(**parse_json(read_text(path)))
        return passes

    def _say_worth(self, passes: dict[int, Agreement], best: int) -> None:
        """Says which pass was chosen, and what the dev trajectories could see of it; the figures
        `dev_sees` and `dev_draw` keep that."""
        numbers = {update: number for number, update in enumerate(sorted(passes), 1)}
        chosen = agreement.load(self._folder(best))
        figure = {
            "step_match": f"{passes[best].step_match:.1%} of the steps",
            "loss": f"{passes[best].loss:.3f} nats per step",
        }[self.measure]
        text = (
            f"pass {numbers[best]} of {len(passes)} agrees best with the expert: {figure} of "
            f"{len(chosen)} dev trajectories"
        )
        others = {u: agreement.load(self._folder(u)) for u in passes if u != best}
        if not others:
            self.stage.note(text)
            return
        smallest = max(
            smallest_difference(chosen, other, self.measure) for other in others.values()
        )
        alike = [u for u, other in others.items() if not self._differs(other, chosen)]
        draw = len(alike) == len(others)
        self.stage.figures |= {"dev_sees": smallest, "dev_draw": float(draw)}
        seen = f"{smallest:.3f} nats" if self.measure == "loss" else f"{100 * smallest:.1f} points"
        if smallest:  # else all passes agree alike, which says nothing of what they could see
            text += f"; differences of {seen} between passes would show (80 % power)"
        if not alike:
            text += "; no other pass is as good"
        else:
            listed = ", ".join(str(numbers[update]) for update in alike)
            text += f"; pass{'es' if len(alike) > 1 else ''} {listed} may be as good"
        if draw:
            few = "TOO FEW trajectories to choose by, " if smallest else ""
            text += f": {few}the choice is a draw"
        self.stage.note(text)

    def _differs(
        self, other: dict[str, TrajectoryAgreement], chosen: dict[str, TrajectoryAgreement]
    ) -> bool:
        """Whether the interval of the chosen pass's gain is above 0."""
        gain = agreement.differences(other, chosen)[self.measure]
        return gain.high < 0 if self.measure == "loss" else gain.low > 0

    def _best_of(self, passes: dict[int, Agreement]) -> int:
        """The best, of equal ones the earliest."""

        def place(update: int) -> tuple[float, float]:
            return agreement.order(self.measure, passes[update].step_match, passes[update].loss)

        return min(sorted(passes), key=place)


def smallest_difference(
    first: dict[str, TrajectoryAgreement],
    second: dict[str, TrajectoryAgreement],
    measure: Measure = "step_match",
) -> float:
    """The difference in a measure that the trajectories of two policies can see (`detectable`), by
    the spread of their paired differences; 0 where all are alike."""
    tasks = agreement.common(first, second)
    one, two = ([side[task] for task in tasks] for side in (first, second))
    gains = agreement.totals(two, measure) - agreement.totals(one, measure)
    weights = agreement.weights(one, measure)
    residuals = gains - weights * gains.sum() / weights.sum()
    error = np.sqrt((residuals**2).sum() * len(tasks) / (len(tasks) - 1)) / weights.sum()
    return detectable(float(error))
