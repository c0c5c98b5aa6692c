"""ReAct (Yao et al., 2023): how a reply is read, and how a conversation is written.

A conversation is a list of messages: a system message (the environment's instruction, the format of
a reply and one worked example), then observations (user) and replies (assistant) in turn.

How `parse` reads what models really write:

| reply                                               | thought      | action          |
|-----------------------------------------------------|--------------|-----------------|
| `Thought: t` newline `Action: a`                    | t            | a               |
| `a` alone on its line, no label (a bare action)     |              | a               |
| no `Thought:`, text before `Action:`                | the text     | a               |
| several `Thought:`                                  | all, joined  | a               |
| several `Action:` (it played both sides)            | of the first | the first       |
| `Thought: t Action: a` on one line, no action later | t            | a               |
| text after the action's line, `Observation: …`      | t            | a, rest dropped |
| `Action: a Observation: …` on one line              | t            | a, rest dropped |
| an `Observation:` before the action                 | left out     | a               |
| other case, numbering, `**Action:**`, quotes, fences | t           | a, bare         |
| `<think>t</think>` before the action, or `[THINK]`  | t            | a               |
| only `</think>` (the prompt opened it)              | all before   | a               |
| harmony: channels analysis, commentary and final    | all but last | of the last     |
| a thought without an action, or nothing             | t            | "" (invalid)    |
| several lines, no label at all                      |              | the first line  |
| a call of a function (`envs.tools`), text before it | the text     | the call        |

What was not used for thought and action (invented observations, whatever follows the action) is
not in `Reply.text`, which is all that conversations, trajectories and training keep of a reply.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypedDict

from stepagent.envs.tools import CLOSE, OPEN, Tool, call_of, is_call
from stepagent.files import read_text

NO_ACTION = (
    "No action was found in your reply. Write one action on a line of its own, "
    "after the word Action and a colon."
)
FORMATS = ("react", "tools")
STOP = ("\nObservation:",)
"""Where generation may stop early: after this the agent plays the environment."""


class Message(TypedDict):
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Reply:
    """A parsed reply. An empty action means that there was none."""

    thought: str
    action: str
    text: str = field(default="", compare=False, repr=False)
    """The part of the reply that thought and action were read from, as it was written."""


@dataclass(frozen=True)
class PromptStyle:
    """Which parts of an environment's prompt a conversation contains. Part of every fingerprint."""

    instruction: bool = True
    """Begin with the environment's instruction. Off only for small models of one set of tasks."""
    example: bool = True
    """Show the one-shot example, as the paper does."""
    thoughts: bool = True
    """Replies are a thought and an action. Off: only the bare action."""
    suffix: str = field(default="", repr=False)  # the system text says it; checksums stay
    """Text at the end of the system message, such as the one with which NAT marks good and bad
    trajectories."""
    format: Literal["react", "tools"] = field(default="react", repr=False)
    """Actions are lines of text (react), or calls of the environment's functions (tools)."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}: choose {' or '.join(FORMATS)}")


# Labels at the start of a line, with any markdown around them: `## **Action 2:** x`.
_LABEL = re.compile(
    r"^[ \t>*_#`\-]*(thought|action|act|observation)s?[ \t]*+(\d*+)[ \t*_`]*+:[ \t*_`]*",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_ACTION = re.compile(r"(?<=\s)[*_`]*(?:Action|ACTION)[ \t]*+(\d*+)[*_`]*:[*_`]*")
_INLINE_OBSERVATION = re.compile(r"(?<=\s)[*_`]*(?:Observation|OBSERVATION)[ \t]*+\d*+[*_`]*:")
_HALF_THINK = re.compile(r"\A((?:(?!<think>).)*)</think>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(
    r"<think>(.*?)(?:</think>|\Z)"
    r"|\A\s*\[THINK\](.*?)(?:\[/THINK\]|\Z)"
    r"|<\|channel\|>(?:analysis|commentary)\b[^<]*<\|message\|>(.*?)"
    r"(?:<\|end\|>|<\|call\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_CALL = re.compile(rf"{OPEN}(.*?)(?:{CLOSE}|\Z)", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$", re.MULTILINE)
_CLOSING_FENCE = re.compile(r"\s*```[ \t]*(?=\n|\Z)")
_SPECIAL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>final\b[^<]*<\|message\|>|<\|start\|>assistant"
    r"|<\|[\w ]{1,40}\|>|</?s>"
)
_LINE_END = re.compile(r"\r\n?")
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "*": "*", "_": "_"}


def parse(reply: str) -> Reply:
    """Reads a reply by the table in the module's docstring. Never raises; linear in its length."""
    source = _Source(reply)
    text = source.text
    if OPEN in text and (call := _call(source)):
        return call
    labels = list(_LABEL.finditer(text))
    head = source.span(0, labels[0].start() if labels else len(text))
    if not labels:
        return _bare_action(head)
    thoughts, invented = [head.text], list[tuple[int, int]]()
    inline: Reply | None = None  # counts only if no action on a line of its own follows
    ends = [match.start() for match in labels[1:]] + [len(text)]
    for label, end in zip(labels, ends, strict=True):
        name, body = label.group(1).lower(), source.span(label.end(), end)
        if name == "thought":
            inline = inline or _inline(thoughts, body, label.group(2), invented)
            thoughts.append(body.text)
        elif name == "observation":
            if inline:
                break  # what follows answers an invented observation
            invented.append((label.start(), end))
        else:
            action, stop = body.line()
            if action:
                return source.reply(thoughts, action, stop, invented)
    if inline:
        return inline
    if labels[0].group(1).lower() == "observation" and head.text:
        return _bare_action(head)  # before an invented observation
    return source.reply(thoughts, "", len(text), invented)


class _Source:
    """A reply without thinking, special tokens and fences, of which the positions are known."""

    def __init__(self, reply: str):
        self.raw, self.text = reply, reply
        self._places: Sequence[int] = range(len(reply))  # of each character of `text` in `raw`
        self._thinking: list[tuple[int, int, str]] = []  # start and end in `raw`, the thought
        if "\r" in reply:
            self._replace(_LINE_END)
        if "</" in self.text:
            self._think(_HALF_THINK)
        if "<" in self.text or "[THINK]" in self.text:
            self._think(_THINK)
            self._replace(_SPECIAL)
        if "```" in self.text:
            self._replace(_FENCE, "")

    def _think(self, pattern: re.Pattern[str]) -> None:
        for match in pattern.finditer(self.text):
            thought = next((group for group in match.groups() if group is not None), "")
            if match.end() > match.start():
                start, end = self._places[match.start()], self._places[match.end() - 1] + 1
                self._thinking.append((start, end, thought.strip()))
        self._replace(pattern)

    def _replace(self, pattern: re.Pattern[str], by: str = "\n") -> None:
        parts: list[str] = []
        places: list[int] = []
        end = 0
        for match in pattern.finditer(self.text):
            if match.end() == match.start():
                continue
            parts += [self.text[end : match.start()], by]
            places += self._places[end : match.start()]
            places += [self._places[match.start()]] * len(by)
            end = match.end()
        if parts:
            self.text = "".join([*parts, self.text[end:]])
            self._places = [*places, *self._places[end:]]

    def span(self, start: int, end: int) -> _Span:
        """That part of the text, without blanks around it."""
        body = self.text[start:end]
        return _Span(self, body.strip(), start + len(body) - len(body.lstrip()))

    def reply(self, thoughts: Iterable[str], action: str, end: int, invented: _Spans = ()) -> Reply:
        """The reply that ends at `end` of the text, without the spans that were invented."""
        stop = len(self.raw) if end >= len(self.text) else self._places[end - 1] + 1 if end else 0
        before = [thought for start, _, thought in self._thinking if start < stop]
        return Reply(_join([*before, *thoughts]), action, self._used(stop, invented))

    def _used(self, stop: int, invented: _Spans) -> str:
        parts, place, places = [], 0, [*self._places, len(self.raw)]
        for start, end in ((places[s], places[e]) for s, e in invented):
            if start < stop:
                parts.append(self.raw[place:start])
                parts += [self.raw[s:e] for s, e, _ in self._thinking if start <= s < end]
                place = end
        text = "".join([*parts, self.raw[place:stop]])
        fence = _CLOSING_FENCE.match(self.raw, stop)
        if fence and len(_FENCE.findall(text)) % 2:
            text += fence.group()
        return text.strip()


_Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Span:
    """A part of a reply."""

    source: _Source
    text: str
    start: int
    """In the text of the source."""

    def line(self) -> tuple[str, int]:
        """The first line with content, bare (see `_bare`), and where it ends in the source."""
        start = self.start
        for line in self.text.split("\n"):
            match = next(_outside_brackets(_INLINE_OBSERVATION, line), None)
            line_used = line[: match.start()] if match else line
            if action := _bare(line_used):
                return action, start + len(line_used.rstrip())
            start += len(line) + 1
        return "", self.start + len(self.text)


def _call(source: _Source) -> Reply | None:
    """The reply whose action is the first call of a function in it; None if a line of ReAct with an
    action comes before it."""
    match = _CALL.search(source.text)
    assert match is not None
    before = source.text[: match.start()]
    for label in _LABEL.finditer(before):
        if label.group(1).lower().startswith("act") and before[label.end() :].strip():
            return None
    try:
        body = json.dumps(json.loads(match.group(1)), ensure_ascii=False)
    except (ValueError, RecursionError):
        body = " ".join(match.group(1).split())
    thought = _LABEL.sub("", before).strip()
    return source.reply([thought], f"{OPEN}{body}{CLOSE}", match.end())


def _bare_action(head: _Span) -> Reply:
    """The reply without a label."""
    return _inline([], head) or head.source.reply([], *head.line())


def _inline(
    thoughts: Iterable[str], body: _Span, number: str = "", invented: _Spans = ()
) -> Reply | None:
    """The reply in a line `t Action: a`, added to the thoughts; None if there is no such label.

    A numbered label (`Action 2:`) is one only after the thought of that number.
    """
    for match in _outside_brackets(_INLINE_ACTION, body.text):
        if match.group(1) in ("", number):
            source, before = body.source, body.text[: match.start()].strip()
            rest = source.span(body.start + match.end(), body.start + len(body.text))
            return source.reply([*thoughts, before], *rest.line(), list(invented))
    return None


def _outside_brackets(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches that are no part of a title, as in `search[Missing in Action: …]`."""
    opened = place = 0
    for match in pattern.finditer(text):
        opened += text.count("[", place, match.start()) - text.count("]", place, match.start())
        place = match.start()
        if opened <= 0:
            yield match


def _join(thoughts: Iterable[str]) -> str:
    return "\n".join(t for t in thoughts if t)


def _bare(line: str) -> str:
    """A line without bullets, quotes and emphasis around it."""
    line = line.strip().lstrip(">").strip()
    while len(line) > 1 and _QUOTES.get(line[0]) == line[-1]:
        line = line[1:-1].strip()
    return line.strip("*`").strip()


def render(
    thought: str, action: str, style: PromptStyle = PromptStyle(), tools: Sequence[Tool] = ()
) -> str:
    """The reply with this thought and action. `parse` returns both.

    In the format "tools" the action is a call of the function of `tools` that stands for it (an
    action that none stands for remains a text).

    >>> render("The door is shut.", "open door")
    'Thought: The door is shut.\\nAction: open door'
    >>> render("The door is shut.", "open door", PromptStyle(thoughts=False))
    'open door'
    """
    if style.format == "tools" and (call := action if is_call(action) else call_of(tools, action)):
        return f"{' '.join(thought.split())}\n{call}" if style.thoughts and thought else call
    if not style.thoughts:
        return action
    return (
        f"Thought: {' '.join(thought.split())}\nAction: {action}"
        if thought
        else (f"Action: {action}")
    )


def cut(reply: str) -> str:
    """The part of a reply that the conversation keeps: what `parse` reads thought and action from.

    >>> cut("Thought: It is shut.\\nAction: open door Observation: It opens.\\nAction: go in")
    'Thought: It is shut.\\nAction: open door'
    """
    return parse(reply).text


def split_thinking(reply: str) -> tuple[str, str]:
    """What a model thought before its reply (`<think>…</think>` and the like), and the rest.

    >>> split_thinking("<think>It is shut.</think>\\n\\nAction: open door")
    ('It is shut.', 'Action: open door')
    """
    source = _Source(reply)
    rest = _THINK.sub("", _HALF_THINK.sub("", reply)).strip()
    return _join(thought for _, _, thought in source._thinking), rest


@dataclass(frozen=True)
class Prompt:
    """An environment's instruction and its one-shot example (observation, thought, action)."""

    instruction: str
    example: tuple[tuple[str, str, str], ...]
    more: tuple[tuple[tuple[str, str, str], ...], ...] = ()
    """Further worked examples, for few-shot prompts (`eval.few_shot`)."""
    tools: tuple[Tool, ...] = ()
    """The environment's actions as functions, for the format "tools"."""

    @staticmethod
    @lru_cache(maxsize=64)
    def load(path: Path) -> Prompt:
        """Reads a `prompt.md`: `# Instruction`, `# Example` with Observation / Thought / Action.

        Raises ValueError if a section is missing or the example is out of order.
        """
        text = read_text(path)
        sections = re.split(r"^# (Instruction|Example)[ \t]*$", text, flags=re.MULTILINE)
        by_heading = dict(zip(sections[1::2], sections[2::2], strict=True))
        if set(by_heading) != {"Instruction", "Example"}:
            raise ValueError(f"{path}: it must have the headings '# Instruction' and '# Example'")
        parts = re.split(
            r"^(Observation|Thought|Action):[ \t]*",
            by_heading["Example"].strip(),
            flags=re.MULTILINE,
        )
        names, bodies = parts[1::2], [body.strip() for body in parts[2::2]]
        turns = len(names) // 3
        if not turns or names != ["Observation", "Thought", "Action"] * turns:
            raise ValueError(f"{path}: the example must repeat Observation, Thought, Action")
        example = tuple((bodies[i], bodies[i + 1], bodies[i + 2]) for i in range(0, len(bodies), 3))
        return Prompt(by_heading["Instruction"].strip(), example)

    def system(self, style: PromptStyle = PromptStyle()) -> str:
        """The system message in a style; "" if the style leaves everything out."""
        parts = []
        if style.instruction:
            parts += [self.instruction, _FORMAT[style.format, style.thoughts]]
        if style.example:
            for number, example in enumerate((self.example, *self.more)):
                lines = [
                    f"Observation: {observation}\n{render(thought, action, style, self.tools)}"
                    for observation, thought, action in example
                ]
                which = "another" if number else "one"
                head = f"Here is {which} task from beginning to end."
                parts.append("\n\n".join([head, *lines]))
            parts.append("Now a new task begins.")
        if style.suffix:
            parts.append(style.suffix)
        return "\n\n".join(parts)

    def checksum(self, style: PromptStyle = PromptStyle()) -> str:
        """A checksum of the system message and the style, for fingerprints."""
        text = f"{style}{self.system(style)}"
        if style.format == "tools":
            text += json.dumps([tool.schema() for tool in self.tools])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_FORMAT = {
    ("react", True): (
        "Answer every observation in two lines: first what you make of it and plan, then the one "
        "action that you take now.\nThought: <your reasoning>\nAction: <one action>"
    ),
    ("react", False): (
        "Answer every observation with the one action that you take now, and nothing else."
    ),
    ("tools", True): (
        "Answer every observation with what you make of it and plan, in a sentence or two, and "
        "with one call: of the function for the one action that you take now."
    ),
    ("tools", False): (
        "Answer every observation with one call: of the function for the action that you take now."
    ),
}


def opening(prompt: Prompt, observation: str, style: PromptStyle = PromptStyle()) -> list[Message]:
    """The conversation at the start of an episode: system message (if any), first observation."""
    system = prompt.system(style)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": observation}]
