"""Conversations and turns to hand to an agent."""

from __future__ import annotations

from typing import Any

from stepagent.agents.core import Turn
from stepagent.envs.react import Message


def say(*texts: str, system: str = "") -> list[Message]:
    """A conversation of observations and replies in turn."""
    roles = ("user", "assistant")
    messages = [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    return [Message(role="system", content=system), *messages] if system else messages


def turn(key: Any, messages: list[Message], env: Any = None, seed: int = 0) -> Turn:
    return Turn(key, messages, env, seed)
