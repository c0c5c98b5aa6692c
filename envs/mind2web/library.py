"""What all environments of a process share: tasks, parsed pages and views.

A task, a parsed page, a ranking and a pruned view are functions of the data alone. Episodes of many
environments, and many episodes of one, use the same pages; so each is computed once and cached
while there is room for it.

Data that cannot be scored are refused, as a score of 0 would be the agent's: tasks none of whose
steps has a page, candidates or a right one, and ranks of other steps. Where only some steps lack
it, one warning says how many.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from stepagent.envs.containers import SourceError
from stepagent.envs.mind2web import rank
from stepagent.envs.mind2web.data import Source, open_source, read_ranks
from stepagent.envs.mind2web.prune import Candidate, Page, View
from stepagent.envs.mind2web.records import Problems, StepFacts

log = logging.getLogger(__name__)

PAGES = 16
"""Parsed pages cached; one may take some ten times the size of its HTML."""
VIEWS = 8192
"""Pruned views cached, of a few kilobytes each."""
TASKS = 64
RANKED = 8192
_PROBED = 20
"""Tasks whose ranks are compared with their candidates before anything is played."""
_NEEDS: tuple[tuple[str, Callable[[StepFacts], bool], str], ...] = (
    ("a page", lambda step: step.page, "looked for cleaned_html or, with html=raw, raw_html"),
    (
        "candidates",
        lambda step: step.candidates,
        "looked for pos_candidates and neg_candidates, or candidates; of the multimodal release, "
        "the parquet files hold them: name their folder",
    ),
    (
        "a positive candidate",
        lambda step: step.positive,
        "without the right elements nothing can be scored",
    ),
)
"""What every step needs, and how one learns what is missing."""


class Library:
    """Tasks of one source with one ranking; `problems` counts their defects.

    `name`: the source, in messages. Raises SourceError, when a split's ids are first needed, for
    data that cannot be scored (see the module's docstring).
    """

    def __init__(
        self,
        name: str,
        source: Source,
        problems: Problems,
        ranks: tuple[str, Mapping[str, Sequence[str]]] | None,
        ranker: rank.Ranker,
        top_k: int,
    ):
        self.name, self.source, self.problems = name, source, problems
        self._ranks_name = ranks[0] if ranks else ""
        self._ranks = ranks[1] if ranks else None
        self.ranker, self._top_k = ranker, top_k
        self.task = lru_cache(TASKS)(source.task)
        self.ids = lru_cache(3)(self._ids)
        self.checksum = lru_cache(1)(source.checksum)
        self.page = lru_cache(PAGES)(self._page)
        self.ranked = lru_cache(RANKED)(self._ranked)
        self.view = lru_cache(VIEWS)(self._view)

    def _ids(self, split: str) -> tuple[str, ...]:
        ids = tuple(self.source.ids(split))
        facts = self.source.facts(split)
        steps = [step for of_task in facts.values() for step in of_task]
        for what, has, advice in _NEEDS:
            lacking = sum(not has(step) for step in steps)
            if steps and lacking == len(steps):
                raise SourceError(
                    f"{self.name}: none of its {len(steps)} steps has {what} ({advice})"
                )
            if lacking:
                log.warning("%s: %d of %d steps lack %s", self.name, lacking, len(steps), what)
        if self._ranks is not None and steps:
            self._check_ranks({task: facts[task] for task in ids}, self._ranks)
        return ids

    def _check_ranks(
        self,
        facts: Mapping[str, Sequence[StepFacts]],
        ranks: Mapping[str, Sequence[str]],
    ) -> None:
        """Raises SourceError for ranks of other data; warns where some steps have none."""
        uids = [step.uid for steps in facts.values() for step in steps]
        ranked = [task for task, steps in facts.items() if any(s.uid in ranks for s in steps)]
        missing = sum(uid not in ranks for uid in uids)
        if uids and not ranked:
            raise SourceError(
                f"ranks: {self._ranks_name} ranks none of the {len(uids)} steps of {self.name}: it "
                f"is of other data. It has {next(iter(ranks), 'nothing')!r}, the data have "
                f"{uids[0]!r} (annotation_id, then action_uid)"
            )
        if ranked and not any(self._usable(task, ranks) for task in islice(ranked, _PROBED)):
            raise SourceError(
                f"ranks: {self._ranks_name} names none of the candidates of {self.name}: its node "
                "ids are of other pages"
            )
        if missing:
            log.warning(
                "ranks: %s has none for %d of %d steps of %s: the ranker ranks these",
                *(self._ranks_name, missing, len(uids), self.name),
            )

    def _usable(self, task_id: str, ranks: Mapping[str, Sequence[str]]) -> bool:
        return any(
            {candidate.node for candidate in step.candidates} & set(ranks.get(step.uid, ()))
            for step in self.task(task_id).steps
        )

    def _page(self, task_id: str, number: int) -> Page:
        step = self.task(task_id).steps[number]
        page = Page(step.html)
        if page.problem:
            self.problems.add(page.problem, step.uid)
        return page

    def _ranked(self, task_id: str, number: int) -> tuple[Candidate, ...]:
        """The step's best candidates, best first: at most `top_k`."""
        task = self.task(task_id)
        step = task.steps[number]
        order = self._ranks.get(step.uid, ()) if self._ranks is not None else ()
        known = {candidate.node: candidate for candidate in step.candidates}
        if not set(order) <= set(known):
            self.problems.add("rank of an unknown candidate", step.uid)
        best = [known[node] for node in order if node in known][: self._top_k]
        if not best and known:
            if self._ranks is not None:
                self.problems.add("step without ranks", step.uid)
            page = self.page(task_id, number)
            best = rank.ranked(step, page, task.instruction, self.ranker)[: self._top_k]
        if step.positives and not set(step.positives) & {c.node for c in best}:
            self.problems.add(f"no positive within the top {self._top_k}", step.uid)
        return tuple(best)

    def _view(
        self, task_id: str, number: int, nodes: tuple[Candidate, ...], budget: int | None
    ) -> View:
        """The page around the candidates (best first)."""
        view = self.page(task_id, number).view(nodes, budget)
        step = self.task(task_id).steps[number]
        for n, options in view.options.items():
            recorded = step.op == "SELECT" and view.nodes[n] in step.positives
            if recorded and step.value not in options:
                self.problems.add("select value that does not exist", step.uid)
        return view


def open_library(
    data: str | Path | None,
    *,
    test_set: str,
    html: str,
    password: str | None,
    ranks: str | Path | None,
    ranker: str | rank.Ranker,
    ranker_args: Mapping[str, Any] | None,
    top_k: int,
) -> Library:
    """The library of these settings, the same one for equal settings and unchanged files.

    Raises ValueError like `open_source`, `read_ranks` and `make_ranker`.
    """
    return _open(
        None if data is None else str(data),
        _stamp(data),
        test_set,
        html,
        password,
        None if ranks is None else str(ranks),
        _stamp(ranks),
        ranker,
        json.dumps(dict(ranker_args or {}), sort_keys=True, default=str),
        top_k,
    )


def _stamp(path: str | Path | None) -> tuple[Any, ...]:
    """A value that changes when a file, or a file in a folder, changes."""
    if path is None:
        return ()
    top = Path(path).expanduser()
    files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())[:1000]
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


@lru_cache(maxsize=8)
def _open(
    data: str | None,
    _data_stamp: Any,
    test_set: str,
    html: str,
    password: str | None,
    ranks: str | None,
    _ranks_stamp: Any,
    ranker: str | rank.Ranker,
    ranker_args: str,
    top_k: int,
) -> Library:
    problems = Problems()
    ranker_object = rank.make_ranker(ranker, json.loads(ranker_args))
    order = None if ranks is None else (ranks, read_ranks(Path(ranks).expanduser()))
    source = open_source(data, problems, test_set=test_set, html=html, password=password)
    return Library(data or "bundled sites", source, problems, order, ranker_object, top_k)
