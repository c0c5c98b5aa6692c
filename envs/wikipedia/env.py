"""`stepagent/HotpotQA-v0`, `stepagent/2WikiMultihopQA-v0`, `stepagent/MuSiQue-v0`: questions whose
answer has to be found by combining several pages of an encyclopedia.

Rules of the episode, after ReAct (Yao et al., 2023) and the paper:

- `search[entity]` opens the entity's page and shows its first five sentences, or says
  `Could not find X. Similar: [five titles].` (`corpus.Corpus.find` defines which page that is).
- `lookup[keyword]`, if it is switched on, steps through the open page's sentences with that word:
  `(Result 1 / 3) …`, and finally `No more results.`. A failed search leaves the page open.
- `finish[answer]` ends the episode. Its score is the exact match; F1 is in the metrics.
- Seven actions, as ReAct has on HotpotQA; four hops and the answer fit.

Deviations from ReAct: names of actions may have any case, a missing last bracket is accepted,
brackets may occur within the argument, and anything else costs a step and lists the actions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from stepagent.envs.core import Outcome, Plan, TextEnv, checked_sizes, checksum
from stepagent.envs.react import Prompt
from stepagent.envs.tools import Tool
from stepagent.envs.wikipedia import data, expert
from stepagent.envs.wikipedia.corpora import check_name, open_corpus
from stepagent.envs.wikipedia.corpus import Corpus, Page, SmallCorpus, next_part
from stepagent.envs.wikipedia.data import located
from stepagent.envs.wikipedia.live import LiveError
from stepagent.envs.wikipedia.questions import Question
from stepagent.envs.wikipedia.score import score
from stepagent.envs.wikipedia.tools import FINISH, LOOKUP, SEARCH

STEPS = 7
MAX_ARGUMENT = 500
"""Characters that the argument of an action may have; the longest titles have about 250."""

_LOOKUP = (
    "- lookup[keyword]: shows the next sentence of the open page that has the keyword in it; use "
    "it for what lies further down the page."
)
_ACTION = re.compile(r"\W*(search|lookup|finish)\s*(\[.*)?", re.IGNORECASE | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_NAME = re.compile(r"[^\W_a-z][\w'’.-]*(?:,? (?:(?:of|the|and|de|in) )*[^\W_a-z][\w'’.-]*)*")


class WikipediaEnv(TextEnv):
    """Multi-hop questions over a corpus of pages; the module's docstring has the rules.

    Parameters
    ----------
    data: None for the bundled encyclopedia, or a folder, archive or file of questions, the official
        ones or in another layout that people pass around (`data.py`).
    corpus: "pooled", the paragraphs of all questions of the split (the paper's way; all pages for
        the bundled questions); "distractor", only the paragraphs of the one question; "live",
        English Wikipedia, or "live:URL" another MediaWiki API; else a file, archive or folder of
        pages, or a folder that `stepagent wikipedia-corpus` made.
    lookup: whether `lookup[keyword]` is an action, too. The paper's prompt does not have it.
    sentences: how many sentences `search` shows; 0: the whole first paragraph.
    sizes: maximum number of questions in train, dev and test.
    seed_of_sample: which questions those are, if there are more.
    split, max_steps, render_mode: as in `TextEnv`.

    Raises ValueError for wrong arguments and for data files that are missing, cut off or of another
    format, naming the file and what is expected.
    """

    prompt_file: ClassVar[Path] = Path(__file__).with_name("prompt.md")
    packages = ("PyStemmer", "rapidfuzz", "requests")
    dataset: ClassVar[str]

    def __init__(
        self,
        *,
        split: str = "train",
        data: str | Path | None = None,
        corpus: str | Path = "pooled",
        lookup: bool = False,
        sentences: int = 5,
        sizes: Sequence[int] = data.SIZES,
        seed_of_sample: int = 0,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__(split=split, max_steps=max_steps, render_mode=render_mode)
        if not isinstance(sentences, int) or sentences < 0:
            raise ValueError(f"sentences is {sentences!r}: it must be a number, at least 0")
        if data is not None:
            located(self.dataset, data)
        if str(corpus) != "distractor":
            check_name(str(corpus))
        self.data, self.corpus_name, self.lookup = data, str(corpus), lookup
        self.sentences, self.sizes = sentences, checked_sizes(sizes)
        self.seed_of_sample = seed_of_sample
        self._reading = expert.Reading()
        self._question: Question | None = None
        self._matches: tuple[str, list[str], int] = ("", [], 0)
        self._last = ""

    @property
    def tools(self) -> tuple[Tool, ...]:
        return (SEARCH, LOOKUP, FINISH) if self.lookup else (SEARCH, FINISH)

    @property
    def page(self) -> Page | None:
        """The page that the last successful search opened."""
        return self._reading.page

    @property
    def prompt(self) -> Prompt:
        """`prompt.md`; with `lookup` among the actions if it is switched on."""
        prompt = super().prompt
        if not self.lookup:
            return prompt
        before, finish, after = prompt.instruction.partition("- finish[answer]")
        return replace(prompt, instruction=f"{before}{_LOOKUP}\n{finish}{after}")

    # Tasks ----------------------------------------------------------------------------------------

    @cached_property
    def _sample(self) -> data.Sample:
        return data.sample(self.dataset, self.split, self.data, self.sizes, self.seed_of_sample)

    @cached_property
    def questions(self) -> dict[str, Question]:
        """Task id → question, of this split."""
        return {question.task_id: question for question in self._sample.questions}

    def data_notes(self) -> dict[str, int]:
        """What of the split's files is left out: reason → number."""
        return dict(self._sample.left_out)

    @cached_property
    def shared_corpus(self) -> Corpus | None:
        """The corpus of all tasks; None if each question has its own."""
        if self.corpus_name == "distractor":
            return None
        return open_corpus(self.corpus_name, self.dataset, self.data, self.questions.values())

    @property
    def question(self) -> Question:
        """The current task's question. Raises RuntimeError before the first reset."""
        if self._question is None:
            raise RuntimeError("no task is running: call reset() first")
        return self._question

    def list_tasks(self) -> Sequence[str]:
        return list(self.questions)

    def step_limit(self, task_id: str) -> int:
        return STEPS

    def data_checksum(self) -> str:
        corpus = self.shared_corpus
        pages = corpus.checksum() if corpus else self.corpus_name
        return checksum(data.source_checksum(self.dataset, self.data), pages)

    # The episode ----------------------------------------------------------------------------------

    def begin(self, task_id: str) -> str:
        self._question = self.questions[task_id]
        self.corpus = self.shared_corpus or SmallCorpus(self._question.passages)
        self._reading, self._matches = expert.Reading(), ("", [], 0)
        self.instruction = self._question.text
        self._last = f"Question: {self._question.text}"
        return self._last

    def act(self, action: str) -> Outcome:
        name, argument = read_action(action)
        argument = " ".join(_CONTROL.sub(" ", argument).split())
        if name == "" or (name == "lookup" and not self.lookup):
            return self._refuse(f"That is no action. Use one of these: {self._actions}.")
        if not argument:
            what = {"search": "entity", "lookup": "keyword", "finish": "answer"}[name]
            return self._refuse(f"{name}[] is empty: write {name}[{what}] with the {what} in it.")
        if len(argument) > MAX_ARGUMENT:
            return self._refuse(
                f"{name}[…] takes at most {MAX_ARGUMENT} characters; yours has {len(argument)}."
            )
        if name == "finish":
            return self._finish(argument)
        return self._search(argument) if name == "search" else self._look_up(argument)

    def _search(self, entity: str) -> Outcome:
        try:
            result = self.corpus.find(entity)
        except LiveError as error:
            return self._refuse(f"{error} Try again, or another action.")
        self._reading.searched.add(entity)
        if isinstance(result, Page):
            self._reading.page, self._matches = result, ("", [], 0)
            self._reading.searched.add(result.title)
            text = self.shown(result)
            self._reading.texts.append(text)
            return self._outcome_of(text)
        return self._outcome_of(f"Could not find {entity}. Similar: {result}.")

    def shown(self, page: Page) -> str:
        """What `search` shows of a page."""
        paragraph = page.paragraphs[0] if page.paragraphs else []
        lines = page.sentences[: self.sentences] if self.sentences else paragraph
        text = " ".join(lines) or f"The page {page.title} is empty."
        following = next_part(page.title)
        return f"{text} (More: {following}.)" if self.corpus.has(following) else text

    def _look_up(self, keyword: str) -> Outcome:
        if self.page is None:
            return self._refuse("No page is open to look anything up in: search[entity] first.")
        last_keyword, lines, at = self._matches
        if last_keyword != keyword:
            lines = [s for s in self.page.sentences if keyword.lower() in s.lower()]
            at = 0
        self._matches = (keyword, lines, at + 1)
        self._reading.looked_up.add((self.page.title, keyword))
        if at >= len(lines):
            return self._outcome_of("No more results.")
        self._reading.texts.append(lines[at])
        return self._outcome_of(f"(Result {at + 1} / {len(lines)}) {lines[at]}")

    def _finish(self, answer: str) -> Outcome:
        metrics = score(self.dataset, answer, self.question.answers)
        em = metrics["em"]
        text = f"Episode finished, reward = {em:.0f}."
        return Outcome(text, em, done=True, success=em == 1, metrics=metrics)

    def _outcome_of(self, observation: str, valid: bool = True) -> Outcome:
        self._last = observation
        return Outcome(observation, 0.0, valid=valid, metrics={"em": 0.0, "f1": 0.0})

    def _refuse(self, reason: str) -> Outcome:
        return Outcome(reason, 0.0, valid=False, metrics={"em": 0.0, "f1": 0.0})

    @property
    def _actions(self) -> str:
        look_up = "lookup[keyword], " if self.lookup else ""
        return f"search[entity], {look_up}finish[answer]"

    def admissible_actions(self) -> list[str]:
        """A search and an answer for each name in the question and the last observation.

        Any text may be searched or answered; these are a guesser's first candidates. Raises
        RuntimeError before the first reset.
        """
        text = f"{self.question.text} {self._last}"
        names = dict.fromkeys(name.strip(" .,'") for name in _NAME.findall(text))
        names = {name: None for name in names if 1 < len(name) <= MAX_ARGUMENT}
        answers = [*names, "yes", "no"]
        return [f"search[{n}]" for n in names] + [f"finish[{a}]" for a in answers]

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """Searches each hop's page, reads, finishes; see `expert.py`. From here: the pages that
        have not been shown yet. No state is lost. Raises before a reset."""
        if from_here:
            return self.plan_onwards(lambda: self._plan(self.steps_left, self._reading))
        return self._plan(self.max_steps or STEPS, expert.NOTHING_READ)

    def _plan(self, steps: int, reading: expert.Reading) -> Plan:
        return expert.plan(
            self.question,
            self.corpus,
            self.shown,
            lookup=self.lookup,
            steps=steps,
            reading=reading,
        )


class HotpotQAEnv(WikipediaEnv):
    """HotpotQA (Yang et al., 2018)."""

    dataset = "hotpotqa"


class TwoWikiMultihopQAEnv(WikipediaEnv):
    """2WikiMultihopQA (Ho et al., 2020)."""

    dataset = "2wikimultihopqa"


class MuSiQueEnv(WikipediaEnv):
    """MuSiQue-Ans (Trivedi et al., 2022)."""

    dataset = "musique"


def read_action(action: str) -> tuple[str, str]:
    """(name, argument) of an action; the name is "" if it is none.

    The argument ends at the bracket that closes the first one; if none does, at the last closing
    bracket, or at the end. What follows is ignored.

    >>> read_action("search[Array [data] types] to see"), read_action("Finish[42")
    (('search', 'Array [data] types'), ('finish', '42'))
    >>> read_action("think[hard]")
    ('', '')
    """
    match = _ACTION.fullmatch(action)
    if not match or not match.group(2):
        return (match.group(1).lower(), "") if match else ("", "")
    name, rest = match.group(1).lower(), match.group(2)[1:]
    depth = 1
    for at, character in enumerate(rest):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return name, rest[:at]
    last = rest.rfind("]")
    return name, rest[:last] if last >= 0 else rest
