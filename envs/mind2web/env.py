"""`stepagent/Mind2Web-v0`: recorded tasks on websites, step by step (Deng et al., 2023).

Rules of the episode:

- At every step the agent sees the task, the last five recorded actions and the pruned page, and
  answers with an element and an operation (`answers.py`): directly (`direct`), or through MindAct's
  rounds of multiple choice (`choice`), each of which is one action of the episode.
- Teacher-forced, like the benchmark: whatever the answer, the next page and the history are the
  recorded ones. An answer that cannot be read is wrong. A reply without an action is no answer: the
  page stays, and since the step limit is the number of answers that the task takes, the last page
  remains unanswered.
- The score is the paper's measure, element accuracy over the task's steps; each right element adds
  1 / steps. `metrics` has it with operation F1, step success and task success (`score.py`), all
  over the task's steps, those not reached yet counting as 0. Success is task success.
- A step none of whose positives is among the `top_k` candidates scores 0 in everything.
- A page shows all of them, as in MindAct; only the bundled sites have a budget of tokens, for small
  models. What does not fit a model's context is cut by the agent, which counts it.

With `live=True` the tasks on the bundled sites are played freely in a real browser (`live.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stepagent.envs.core import Outcome, Plan, TextEnv, checksum
from stepagent.envs.mind2web import expert
from stepagent.envs.mind2web.answers import one_line
from stepagent.envs.mind2web.data import HTML_KINDS, TEST_SETS
from stepagent.envs.mind2web.library import Library, open_library
from stepagent.envs.mind2web.prune import Candidate
from stepagent.envs.mind2web.questions import ANSWERS, Decision, Direct, Question, Rounds
from stepagent.envs.mind2web.rank import HISTORY, Ranker
from stepagent.envs.mind2web.records import Problems, RecordedStep, Task
from stepagent.envs.mind2web.score import StepScore, operation_text, score_step, task_metrics
from stepagent.envs.mind2web.tools import CHOICE, DIRECT
from stepagent.envs.tools import OPEN, Tool

BUDGETS = ("shared", "none")
EPISODE_BUDGET = 3200
"""Tokens for all pages of an episode with the budget "shared": what a context of 4,096 leaves."""
PAGE_BUDGETS = (300, 800)
"""Minimum and maximum tokens of one page with the budget "shared"."""


class Mind2WebEnv(TextEnv):
    """Mind2Web as a text environment; the module's docstring has the rules.

    Parameters
    ----------
    data: folder of the official files, a .json / .jsonl file of tasks or steps, or None for the
        tasks on the bundled sites (`data.py`).
    test_set: which official set is the split test: "domain" (912 tasks, the paper's), "task" (252)
        or "website" (177).
    answers: "direct" or "choice".
    html: which page of the official files is shown, "cleaned" or "raw".
    password: of the official zip archives.
    ranks: JSON file of candidate ranks (`stepagent mind2web-ranks` converts the official
        pickle); None: the ranker ranks.
    ranker: "bm25", `module:Class` of a `rank.Ranker`, or a ranker.
    ranker_args: arguments of that class.
    top_k: candidates that are shown, by rank.
    budget: tokens that a page may take; "shared": `EPISODE_BUDGET` shared by the task's pages,
        within `PAGE_BUDGETS`; "none": any number; None: "shared" for the bundled sites, "none" for
        `data`. If a page exceeds it, less is shown around the candidates; see `prune.py`.
    split, max_steps, render_mode: as in `TextEnv`.

    Raises ValueError for unknown values, listing what exists, and for data that cannot be read or
    scored; defects of single steps are counted in `problems`, those of an episode's steps in its
    `data_notes`.
    """

    prompt_file: ClassVar[Path] = Path(__file__).with_name("prompt.md")
    packages: ClassVar[tuple[str, ...]] = ("lxml", "PyStemmer")

    def __init__(
        self,
        *,
        split: str = "train",
        data: str | Path | None = None,
        test_set: str = "domain",
        answers: str = "direct",
        html: str = "cleaned",
        password: str | None = None,
        ranks: str | Path | None = None,
        ranker: str | Ranker = "bm25",
        ranker_args: Mapping[str, Any] | None = None,
        top_k: int = 50,
        budget: int | str | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__(split=split, max_steps=max_steps, render_mode=render_mode)
        for name, value, known in (
            ("answers", answers, ANSWERS),
            ("test_set", test_set, TEST_SETS),
            ("html", html, HTML_KINDS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}: it must be at least 1")
        if not (budget is None or budget in BUDGETS or (isinstance(budget, int) and budget >= 1)):
            raise ValueError(
                f"budget is {budget!r}: it must be a number, at least 1, or {' or '.join(BUDGETS)}"
            )
        self.budget = budget or ("shared" if data is None else "none")
        """Tokens that a page may take, or one of BUDGETS."""
        self.answers, self.top_k = answers, top_k
        self._library: Library = open_library(
            data,
            test_set=test_set,
            html=html,
            password=password,
            ranks=ranks,
            ranker=ranker,
            ranker_args=ranker_args,
            top_k=top_k,
        )
        if answers == "choice":
            self.prompt_file = Path(__file__).with_name("prompt_choice.md")  # type: ignore[misc]
        self._task: Task | None = None
        self._scores: list[StepScore] = []
        self._question: Question | None = None
        self._orders: int = 0
        self._hidden = Problems()
        """Steps whose right element this environment's budget hides."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        return CHOICE if self.answers == "choice" else DIRECT

    # Tasks ------------------------------------------------------------------------------------

    def list_tasks(self) -> Sequence[str]:
        return self._library.ids(self.split)

    def step_limit(self, task_id: str) -> int:
        if self.answers == "direct":
            return len(self._library.task(task_id).steps)
        steps = range(len(self._library.task(task_id).steps))
        shown = [len(self._library.ranked(task_id, i)) for i in steps]
        return sum(max(1, -(-(n - 1) // 4)) for n in shown)

    def data_checksum(self) -> str:
        return checksum(self._library.checksum())

    def fingerprint(self) -> dict[str, str]:
        fingerprint = super().fingerprint()
        arguments = json.loads(fingerprint["arguments"])
        arguments.pop("password", None)  # it only gives access, and must not be recorded
        own = {"arguments": json.dumps(arguments, sort_keys=True), "budget": str(self.budget)}
        return {**fingerprint, **own}

    def data_notes(self) -> dict[str, int]:
        self.tasks  # noqa: B018  (reads the split, if that has not happened yet)
        left_out = self._library.source.left_out(self.split)
        return {f"left out: {kind}": count for kind, count in left_out.items()}

    @property
    def problems(self) -> dict[str, int]:
        """Defects of the data seen so far: kind → number of steps (or records)."""
        return {**self._library.problems.counts(), **self._hidden.counts()}

    # The episode ------------------------------------------------------------------------------

    def begin(self, task_id: str) -> str:
        self._task = self._library.task(task_id)
        self._scores = []
        self._orders = int(self.rng.integers(2**31))
        self.instruction = self._task.instruction
        self._question = self._ask(0)
        return self._observation()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.answers == "choice" and isinstance(action, str) and OPEN not in action:
            action = one_line(action)  # MindAct's three lines would be parsed as a ReAct reply
        return super().step(action)

    def act(self, action: str) -> Outcome:
        assert self._task is not None
        assert self._question is not None
        decision, wrong = self._question.answer(action)
        if decision is not None:
            uid = self._task.steps[len(self._scores)].uid
            for problem in [*self._library.problems.of(uid), *self._hidden.of(uid)]:
                self.note(f"steps: {problem}")
            self._scores.append(self._score(decision))
            if len(self._scores) < len(self._task.steps):
                self._question = self._ask(len(self._scores))
        metrics = task_metrics(self._scores, len(self._task.steps))
        done = len(self._scores) == len(self._task.steps)
        text = self._closing(metrics) if done else self._observation()
        return Outcome(
            observation=f"{wrong}\n\n{text}" if wrong else text,
            score=metrics["element_accuracy"],
            done=done,
            success=bool(metrics["task_success"]),
            valid=not wrong,
            metrics=metrics,
        )

    def admissible_actions(self) -> list[str]:
        """An answer for each element shown, and for each option of a select. Raises before a
        reset."""
        if self._question is None:
            raise RuntimeError("no task is running: call reset() first")
        return self._question.admissible()

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """The recorded actions, with a thought before each. Raises before the first reset."""
        if self._task is None or self._question is None:
            raise RuntimeError("no task is running: call reset() first")
        if from_here:
            return self.plan_onwards(self._plan_from_here)
        return expert.plan(self._task, map(self._ask, range(len(self._task.steps))))

    def _plan_from_here(self) -> Plan:
        """The recorded actions of this page and the following ones, as many as there are steps for:
        whoever gave no answer somewhere does not get to the last page."""
        assert self._task is not None
        assert self._question is not None
        number = len(self._scores)
        following = map(self._ask, range(number + 1, len(self._task.steps)))
        questions = itertools.chain([self._question.copy()], following)
        return expert.plan(self._task, questions, number)[: self.steps_left]

    # Pages ------------------------------------------------------------------------------------

    def _ask(self, number: int) -> Question:
        """The question about one step's page."""
        assert self._task is not None
        candidates = self._library.ranked(self._task.id, number)
        draw = partial(self._library.view, self._task.id, number, budget=self.page_budget)
        value = self._task.steps[number].value
        if self.answers == "direct":
            question: Question = Direct(candidates, draw, value)
            self._check_shown(self._task.steps[number], question, candidates)
            return question
        order = np.random.default_rng([self._orders, number]).permutation(len(candidates))
        return Rounds([candidates[i] for i in order], draw, value)

    def _check_shown(
        self, step: RecordedStep, question: Question, candidates: Sequence[Candidate]
    ) -> None:
        ranked = {c.node for c in candidates} & set(step.positives)
        if ranked and not ranked & set(question.view.nodes):
            self._hidden.add("positive left out by the token budget", step.uid)

    @property
    def page_budget(self) -> int | None:
        """Tokens that a page of the current task may take; None: any number."""
        assert self._task is not None
        if isinstance(self.budget, int):
            return self.budget
        least, most = PAGE_BUDGETS
        share = EPISODE_BUDGET // len(self._task.steps)
        return max(least, min(most, share)) if self.budget == "shared" else None

    def _observation(self) -> str:
        assert self._task is not None
        assert self._question is not None
        history = self._task.steps[len(self._scores)].history
        return describe(self.instruction, history, self._question.text())

    def _score(self, decision: Decision) -> StepScore:
        assert self._task is not None
        number = len(self._scores)
        step = self._task.steps[number]
        return score_step(
            decision.node,
            operation_text(decision.op, decision.value),
            step.positives,
            operation_text(step.op, step.value),
            (candidate.node for candidate in self._library.ranked(self._task.id, number)),
        )

    def _closing(self, metrics: Mapping[str, float]) -> str:
        steps = int(metrics["task_steps"])
        return (
            f"The task is over. Right elements: {round(metrics['element_accuracy'] * steps)} of "
            f"{steps}; steps done right: {round(metrics['step_success'] * steps)}."
        )


def describe(instruction: str, history: Sequence[str], question: str) -> str:
    """An observation: task, last actions and question."""
    last = [" ".join(action.split())[:160] for action in history[-HISTORY:]]
    before = "\n".join(["Previous actions:", *last]) if last else "Previous actions: none"
    return f"Task: {instruction[:2000]}\n{before}\n{question}"
