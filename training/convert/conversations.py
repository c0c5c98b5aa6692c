"""A record of any readable layout as a conversation: turns, and what the record says of its task.

What the layouts add is taken off: instructions that the agent acknowledges (`OK`), worked examples,
labels such as `Observation:`, lists of available actions, ALFWorld's banner. What is left is the
episode: observations and replies in turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepagent.envs import ENTRY_POINTS, react
from stepagent.envs.layouts import turns_of
from stepagent.envs.trajectory import Step

USER, AGENT, SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("user", "human", "tool", "function", "observation", "environment"), USER),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "function_call"), AGENT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
_ACKNOWLEDGED = re.compile(r"\s*(?:ok|okay|sure|understood|got it|i understand)\b", re.IGNORECASE)
_YOUR_TURN = re.compile(r".*\bit'?s your turn\b[^\n]*\n", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"\s*(?:Observation(?: ?\d+)?|Task Description)[ \t]*:[ \t]*\n?", re.IGNORECASE)
_AVAILABLE = re.compile(
    r"(?<!\s)[^\S\n]*+\n\s*+available actions\s*+:.*\Z", re.IGNORECASE | re.DOTALL
)
_BANNER = re.compile(r"\s*-= Welcome to TextWorld, ALFRED! =-\s*")
_ARRIVAL = re.compile(r"\s*You arrive at loc \d+\. ")
_FINISHED = re.compile(r"Episode finished, reward = (True|False|[\d.]+)")
_REACT_TURNS = re.compile(r"^(?=Observation(?: ?\d+)?:)", re.MULTILINE)
_REACT_REPLIES = re.compile(r"^(?=Thought(?: ?\d+)?:)", re.MULTILINE)


@dataclass(frozen=True)
class Conversation:
    """The episode of a record."""

    opening: str
    """First observation."""
    steps: tuple[Step, ...]
    final_observation: str
    task: str
    """What the record calls its task: an id, a path; "" where it says nothing."""
    env: str
    """Id of an environment of ours, where the record names one; else ""."""
    context: str
    """Instruction and examples that stood before the episode."""
    reward: float | None
    """Score in [0, 1]; None where the record says nothing."""
    labelled: bool
    """Whether any reply says `Action:`."""


def conversation_of(value: Any, layout: str) -> Conversation:
    """The conversation of a record. Raises ValueError that says what is missing or wrong."""
    fields = value if isinstance(value, dict) else {}
    turns = _joined(_READERS.get(layout, _turns)(value))
    context, turns = _without_context(turns)
    if not turns or turns[0][0] != USER:
        raise ValueError("it begins with the agent's turn: there is no first observation")
    final = turns.pop()[1] if turns[-1][0] == USER else ""
    if not turns:
        raise ValueError("it has no turn of an agent")
    observations = [_observation(text) for _, text in turns[::2]]
    replies = [text for _, text in turns[1::2]]
    steps = tuple(map(_step, observations, replies))
    if not any(step.action for step in steps):
        raise ValueError("no reply holds an action")
    return Conversation(
        observations[0],
        steps,
        _observation(final),
        _task(fields),
        env if isinstance(env := fields.get("env"), str) and env in ENTRY_POINTS else "",
        context,
        _reward(fields, final),
        any("action:" in reply.lower() for reply in replies),
    )


def _step(observation: str, text: str) -> Step:
    reply = react.parse(text)
    if reply.action:
        return Step(observation, reply.thought, reply.action)
    return Step(observation, reply.thought, "", valid=False, reply=text)


def _task(fields: dict[str, Any]) -> str:
    for key in ("game", "game_file", "item_id", "task_id", "id", "session_id"):
        if isinstance(fields.get(key), str | int):
            return str(fields[key])
    return ""


def _reward(fields: dict[str, Any], final: str) -> float | None:
    """From the record, or from what FireAct's last observation says."""
    meta = fields.get("meta") if isinstance(fields.get("meta"), dict) else {}
    for source in (fields, meta or {}):
        reward = source.get("reward")
        if isinstance(reward, bool | int | float) and 0 <= reward <= 1:
            return float(reward)
    finished = _FINISHED.search(final)
    if not finished:
        return None
    text = finished.group(1)
    reward = {"True": 1.0, "False": 0.0}.get(text)
    return float(text) if reward is None else reward


# Turns ----------------------------------------------------------------------------------------


def _turns(value: Any) -> list[tuple[str, str]]:
    """Of messages (role, content), ShareGPT (from, value) and all that look so."""
    items = value if isinstance(value, list) else turns_of(value)
    if not items:
        raise ValueError("it holds no turns: a task, not an episode")
    return [_turn(item, number) for number, item in enumerate(items, 1)]


def _turn(item: Any, number: int) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise ValueError(f"turn {number} is no object")
    name = item.get("role", item.get("from"))
    role = _ROLES.get(str(name).lower())
    if role is None:
        known = ", ".join(_ROLES)
        raise ValueError(f"turn {number} is of {name!r}, which is none of {known}")
    content = item.get("content", item.get("value"))
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    return role, _content(content, calls, number)


def _content(content: Any, calls: list[Any], number: int) -> str:
    if isinstance(content, list):  # parts, as OpenAI has them
        kinds = {part.get("type") for part in content if isinstance(part, dict)}
        if kinds - {"text"}:
            raise ValueError(f"turn {number} holds {', '.join(map(str, kinds - {'text'}))}")
        content = "\n".join(str(part.get("text", "")) for part in content)
    if calls:
        action = _called(calls, number)
        return f"Thought: {content}\nAction: {action}" if content else f"Action: {action}"
    if not isinstance(content, str):
        raise ValueError(f"turn {number} has no text")
    return content


def _called(calls: list[Any], number: int) -> str:
    """A function call of one argument as `name[argument]`, as our environments write actions."""
    import json

    if len(calls) != 1:
        raise ValueError(f"turn {number} calls {len(calls)} functions at once")
    call = calls[0].get("function", calls[0]) if isinstance(calls[0], dict) else {}
    arguments = call.get("arguments")
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or len(arguments) != 1 or not call.get("name"):
        raise ValueError(f"turn {number} calls a function that is no action of one argument")
    return f"{call['name']}[{next(iter(arguments.values()))}]"


def _fireact(value: dict[str, Any]) -> list[tuple[str, str]]:
    """FireAct: `messages`, a `traj` of its runs, or `instruction` and ReAct text as `output`."""
    if "traj" in value:
        if not isinstance(value["traj"], list):
            raise ValueError("its traj is no list")
        return _turns(value["traj"])
    if "output" not in value:
        return _turns(value)
    turns = [(USER, f"{value['instruction']}\n{value.get('input') or ''}".strip())]
    for part in _REACT_TURNS.split(str(value["output"])):
        observation, *replies = _REACT_REPLIES.split(part)
        if observation.strip():
            role = USER if observation.startswith("Observation") else AGENT
            turns.append((role, observation.strip()))
        turns += [(AGENT, reply.strip()) for reply in replies]
    return turns


def _prompt_completion(value: dict[str, Any]) -> list[tuple[str, str]]:
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [(USER, prompt), (AGENT, completion)]
    return _turns([*prompt, *completion])


_READERS: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
    "fireact": _fireact,
    "prompt-completion": _prompt_completion,
}


def _joined(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns of one speaker that follow one another become one."""
    joined: list[tuple[str, str]] = []
    for role, text in turns:
        if joined and joined[-1][0] == role:
            joined[-1] = role, f"{joined[-1][1]}\n{text}"
        else:
            joined.append((role, text))
    return joined


def _without_context(turns: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """The texts before the episode, and the episode."""
    context = [text for role, text in turns if role == SYSTEM]
    turns = _joined([turn for turn in turns if turn[0] != SYSTEM])
    while len(turns) > 2 and turns[0][0] == USER and _acknowledges(turns[1][1]):
        context.append(turns[0][1])
        turns = turns[2:]
    starts = [i for i, (role, text) in enumerate(turns) if role == USER and _YOUR_TURN.match(text)]
    if starts:
        context += [text for _, text in turns[: starts[-1]]]
        start = turns[starts[-1]]
        head = _YOUR_TURN.match(start[1])
        assert head is not None
        context.append(head.group())
        turns = [(USER, start[1][head.end() :]), *turns[starts[-1] + 1 :]]
    return "\n".join(context), turns


def _acknowledges(text: str) -> bool:
    return bool(_ACKNOWLEDGED.match(text)) and "action:" not in text.lower()


def _observation(text: str) -> str:
    """An observation as our environments write it."""
    if label := _LABEL.match(text):
        text = text[label.end() :]
    if banner := _BANNER.match(text):
        text = text[banner.end() :]
    if arrival := _ARRIVAL.match(text):
        text = text[arrival.end() :]
    return _AVAILABLE.sub("", text).strip()
