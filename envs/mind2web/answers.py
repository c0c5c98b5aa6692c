"""What an agent may answer: an element and an operation, or one of MindAct's choices.

| way    | answers                                                                      |
|--------|------------------------------------------------------------------------------|
| direct | `CLICK [12]`, `TYPE [5] [text]`, `SELECT [7] [value]`                        |
| choice | `A` (none of these), `B. CLICK`, `C. SELECT [value]`, `D. TYPE [text]`        |

MindAct's own three lines (`C.`, `Action: SELECT`, `Value: x`) are one line here, because a ReAct
action is one line; `one_line` reads them too. Missing brackets, other case and surrounding words
are accepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPERATIONS = ("CLICK", "TYPE", "SELECT")
NONE = "A"
"""The choice of none of the elements."""
MAX_ANSWER = 2000
"""Characters of an answer that are read."""

_OPERATION = r"(?P<op>CLICK|TYPE|SELECT)\b"
_DIRECT = re.compile(
    _OPERATION + r"[\s:(]*(?:\[\s*(?:id\s*=\s*)?(?P<n>\d{1,6})\s*\]|(?:id\s*=\s*)?(?P<m>\d{1,6})\b)"
    r"\)?\s*[:,]?\s*(?P<value>.*)",
    re.IGNORECASE | re.ASCII,
)
_CHOICE = re.compile(
    r"(?:Answer\s*:\s*)?[\[(]?(?P<letter>[A-F])\b[\])]?[.:,)]*\s*(?P<rest>.*)", re.ASCII
)
_CHOSEN = re.compile(
    r"(?:Action\s*:\s*)?" + _OPERATION + r"[\s:,]*(?:Value\s*:\s*)?(?P<value>.*)", re.IGNORECASE
)
_LINES = re.compile(
    r"(?:Answer\s*+:\s*+|Action\s*+:\s*+|\A\s*+|\n[^\S\n]*+)[\[(]?(?P<letter>[A-F])\b[\])]?[.:)]*\s+"
    r"Action\s*:\s*(?P<op>CLICK|TYPE|SELECT)\b(?:\s*Value\s*:[^\S\n]*(?P<value>[^\n]*))?"
)


@dataclass(frozen=True)
class Answer:
    """An element (its number in the view; None: none of these), an operation and a value."""

    number: int | None
    op: str = ""
    value: str = ""


def read_direct(text: str) -> Answer | None:
    """The answer in a direct action; None if there is none.

    >>> read_direct("TYPE [5] [new york]")
    Answer(number=5, op='TYPE', value='new york')
    >>> read_direct("click 12"), read_direct("HOVER [3]")
    (Answer(number=12, op='CLICK', value=''), None)
    """
    match = _DIRECT.match(text[:MAX_ANSWER].strip())
    if not match:
        return None
    return Answer(int(match["n"] or match["m"]), match["op"].upper(), _bare(match["value"]))


def read_choice(text: str) -> Answer | None:
    """The answer in a choice: B is number 0. None if it cannot be read.

    >>> read_choice("C. SELECT [2 guests]")
    Answer(number=1, op='SELECT', value='2 guests')
    >>> read_choice("A. None of the above"), read_choice("G. CLICK"), read_choice("B. JUMP")
    (Answer(number=None, op='', value=''), None, None)
    """
    match = _CHOICE.match(text[:MAX_ANSWER].strip())
    if not match:
        return None
    if match["letter"] == NONE:
        return Answer(None)
    chosen = _CHOSEN.match(match["rest"])
    if not chosen:
        return None
    number = ord(match["letter"]) - ord("B")
    return Answer(number, chosen["op"].upper(), _bare(chosen["value"]))


def one_line(reply: str) -> str:
    """A reply in MindAct's three lines as one action; any other reply unchanged.

    >>> one_line("C.\\nAction: SELECT\\nValue: 2 guests")
    'Action: C. SELECT [2 guests]'
    >>> one_line("C. SELECT [2 guests]")
    'C. SELECT [2 guests]'
    """
    match = _LINES.search(reply[: 2 * MAX_ANSWER])
    if not match:
        return reply
    value = (match["value"] or "").strip()
    action = f"Action: {match['letter']}. {match['op']}" + (f" [{value}]" if value else "")
    thought = reply[: match.start()].strip()
    return f"{thought}\n{action}" if thought else action


def write_direct(number: int, op: str, value: str) -> str:
    """The direct action for an answer; `read_direct` reads it."""
    return f"{op} [{number}]" + (f" [{value}]" if value or op != "CLICK" else "")


def write_choice(number: int | None, op: str = "", value: str = "") -> str:
    """The action for a choice; `read_choice` reads it."""
    if number is None:
        return NONE
    return f"{chr(ord('B') + number)}. {op}" + (f" [{value}]" if value or op != "CLICK" else "")


def _bare(value: str) -> str:
    """A value without the brackets around it: from the first to the last, whatever follows."""
    value = value.strip()
    if value.startswith("["):
        end = value.rfind("]")
        value = value[1:end] if end > 0 else value[1:]
    return " ".join(value.split())
