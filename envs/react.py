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
| an `Observation:` before the action                 | left out     | a               |
| other case, numbering, `**Action:**`, quotes, fences | t           | a, bare         |
| `<think>t</think>` before the action                | t            | a               |
| a thought without an action, or nothing             | t            | "" (invalid)    |
| several lines, no label at all                      |              | the first line  |
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

NO_ACTION = (
    "No action was found in your reply. Write one action on a line of its own, "
    "after the word Action and a colon."
)
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


@dataclass(frozen=True)
class PromptStyle:
    """Which parts of an environment's prompt a conversation contains. Part of every fingerprint."""

    instruction: bool = True
    """Start with the environment's instruction. Off only for small models of one task set."""
    example: bool = True
    """Show the one-shot example, as the paper does."""
    thoughts: bool = True
    """Replies are a thought and an action; off: only the bare action."""
    suffix: str = field(default="", repr=False)  # the system text says it; checksums stay
    """Text at the end, such as the one with which NAT marks good and bad trajectories."""


# Labels at the start of a line, with any markdown around them: `## **Action 2:** x`.
_LABEL = re.compile(
    r"^[ \t>*_#`\-]*(thought|action|act|observation)s?[ \t]*+(\d*+)[ \t*_`]*+:[ \t*_`]*",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_ACTION = re.compile(r"(?<=\s)[*_`]*(?:Action|ACTION)[ \t]*+(\d*+)[*_`]*:[*_`]*")
_THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$", re.MULTILINE)
_SPECIAL = re.compile(r"<\|[\w ]{1,40}\|>|</?s>")
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "*": "*", "_": "_"}


def parse(reply: str) -> Reply:
    """Reads a reply by the table in the module's docstring. Never raises; linear in its length."""
    text = reply.replace("\r\n", "\n").replace("\r", "\n")
    thoughts: list[str] = []
    if "<" in text:
        thoughts += [match.strip() for match in _THINK.findall(text)]
        text = _SPECIAL.sub("\n", _THINK.sub("\n", text))
    if "```" in text:
        text = _FENCE.sub("", text)
    labels = list(_LABEL.finditer(text))
    head = text[: labels[0].start()].strip() if labels else text.strip()
    if not labels:
        return _split_inline(thoughts, head) or Reply(_join(thoughts), _bare(head))
    thoughts.append(head)
    inline: Reply | None = None  # counts only if no action on a line of its own follows
    ends = [match.start() for match in labels[1:]] + [len(text)]
    for label, end in zip(labels, ends, strict=True):
        name, body = label.group(1).lower(), text[label.end() : end].strip()
        if name == "thought":
            inline = inline or _split_inline(thoughts, body, label.group(2))
            thoughts.append(body)
        elif name == "observation":
            if inline:
                break  # what follows answers an invented observation
        elif _bare(body):
            return Reply(_join(thoughts), _bare(body))
    if inline:
        return inline
    if labels[0].group(1).lower() == "observation" and head and "\n" not in head:
        return Reply("", _bare(head))  # a bare action, then an invented observation
    return Reply(_join(thoughts), "")


def _split_inline(thoughts: list[str], text: str, number: str = "") -> Reply | None:
    """The reply in a line `t Action: a`, added to the thoughts; None if there is no such label.

    Titles contain the word too (`search[Missing in Action: …]`): within brackets it is no label,
    and a numbered one (`Action 2:`) is one only after the thought of that number.
    """
    opened = at = 0
    for match in _INLINE_ACTION.finditer(text):
        opened += text.count("[", at, match.start()) - text.count("]", at, match.start())
        at = match.start()
        if opened <= 0 and match.group(1) in ("", number):
            return Reply(_join([*thoughts, text[:at].strip()]), _bare(text[match.end() :]))
    return None


def _join(thoughts: Iterable[str]) -> str:
    return "\n".join(t for t in thoughts if t)


def _bare(body: str) -> str:
    """The first line with content, without bullets, quotes and emphasis around it."""
    for line in body.split("\n"):
        line = line.strip().lstrip(">").strip()
        while len(line) > 1 and _QUOTES.get(line[0]) == line[-1]:
            line = line[1:-1].strip()
        line = line.strip("*`").strip()
        if line:
            return line
    return ""


def render(thought: str, action: str, style: PromptStyle = PromptStyle()) -> str:
    """The reply with this thought and action. `parse` returns both.

    >>> render("The door is shut.", "open door")
    'Thought: The door is shut.\\nAction: open door'
    >>> render("The door is shut.", "open door", PromptStyle(thoughts=False))
    'open door'
    """
    if not style.thoughts:
        return action
    return (
        f"Thought: {' '.join(thought.split())}\nAction: {action}"
        if thought
        else (f"Action: {action}")
    )


def cut(reply: str) -> str:
    """The part of a reply that the conversation keeps: up to an observation that the agent
    invented."""
    for stop in STOP:
        reply = reply.split(stop, 1)[0]
    return reply.strip()


@dataclass(frozen=True)
class Prompt:
    """An environment's instruction and its one-shot example (observation, thought, action)."""

    instruction: str
    example: tuple[tuple[str, str, str], ...]
    more: tuple[tuple[tuple[str, str, str], ...], ...] = ()
    """Further worked examples, for few-shot prompts (`eval.few_shot`)."""

    @staticmethod
    @lru_cache(maxsize=64)
    def load(path: Path) -> Prompt:
        """Reads a `prompt.md`: `# Instruction`, `# Example` with Observation / Thought / Action.

        Raises ValueError if a section is missing or the example is out of order.
        """
        text = path.read_text(encoding="utf-8")
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
            parts += [self.instruction, _FORMAT[style.thoughts]]
        if style.example:
            for number, example in enumerate((self.example, *self.more)):
                lines = [
                    f"Observation: {observation}\n{render(thought, action, style)}"
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
        return hashlib.sha256(f"{style}{self.system(style)}".encode()).hexdigest()[:16]


_FORMAT = {
    True: (
        "Answer every observation in two lines: first what you make of it and plan, then the one "
        "action that you take now.\nThought: <your reasoning>\nAction: <one action>"
    ),
    False: "Answer every observation with the one action that you take now, and nothing else.",
}


def opening(prompt: Prompt, observation: str, style: PromptStyle = PromptStyle()) -> list[Message]:
    """The conversation at the start of an episode: system message (if any), first observation."""
    system = prompt.system(style)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": observation}]
