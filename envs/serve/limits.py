"""What a server offers, its limits, and its refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from stepagent import command_line
from stepagent.envs.arguments import texts_of
from stepagent.errors import UserError

_SHORTEST_SECRET = 4
"""Characters; shorter texts are names of splits and the like, and part of other words."""


class Refusal(Exception):
    """An error as an answer: HTTP status, code and message (`docs/pages/servers.md` lists them)."""

    def __init__(self, status: int, code: str, message: str, kind: str = "", retry_after: int = 0):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.error = {"code": code, "message": message, **({"type": kind} if kind else {})}


@dataclass(frozen=True)
class Limits:
    """A server's limits: seconds, bytes, numbers of sessions."""

    max_sessions: int = 256
    idle_seconds: float = 1800.0
    step_seconds: float = 120.0
    start_seconds: float = 300.0
    """For making an environment, and for a reset, which may have to load data first."""
    max_body: int = 4 << 20


@dataclass
class Offer:
    """One environment that a server offers."""

    env_id: str
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments that the server fixes, such as the location of its data."""
    allowed: list[str] | None = None
    """Arguments that clients may set. None: any but the fixed ones."""

    @property
    def name(self) -> str:
        """The id without the module that registers it."""
        return self.env_id.rsplit(":", 1)[-1]

    def lets_choose(self, name: str) -> bool:
        """Whether clients may set an argument."""
        return name not in self.args and (self.allowed is None or name in self.allowed)

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The client's and the server's arguments. Refuses those that a client may not set."""
        for name, value in arguments.items():
            if name in self.args and value != self.args[name]:
                why = "the server fixes it"  # its value may be a secret
            elif name not in self.args and self.allowed is not None and name not in self.allowed:
                why = f"it takes {', '.join(self.allowed) or 'none'} (--client-args)"
            else:
                continue
            raise Refusal(403, "argument", f"{self.name}: clients may not set {name!r} here: {why}")
        return {**arguments, **self.args}

    def without_fixed(self, text: str) -> str:
        """A message in which no text among the fixed arguments can be read."""
        for fixed in sorted(texts_of(self.args), key=len, reverse=True):
            if len(fixed) >= _SHORTEST_SECRET:
                text = text.replace(fixed, "(fixed by the server)")
        return text


def failure(error: BaseException, offer: Offer) -> Refusal:
    """The Refusal for what an environment raised; a Refusal is returned as it is."""
    if isinstance(error, Refusal):
        return error
    kind = type(error).__name__
    refused = kind in ("ValueError", "TypeError", "ResetNeeded", "NotImplementedError")
    status = 422 if refused or isinstance(error, UserError) else 500
    message = offer.without_fixed(str(error) or repr(error))
    return Refusal(status, "environment", message[:4000], kind)


def encode(answer: Any) -> bytes:
    """An answer as JSON; numpy's numbers become plain ones."""
    return json.dumps(answer, ensure_ascii=False, default=_plain).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def offers(
    env_ids: list[str], env_args: dict[str, Any], client_args: list[str] | None
) -> list[Offer]:
    """What a server offers, from its options. Raises ValueError for arguments of an unknown
    environment."""
    id_by_name = {env_id.rsplit(":", 1)[-1]: env_id for env_id in env_ids}
    fixed = {name.rsplit(":", 1)[-1]: args for name, args in env_args.items()}
    for name, args in fixed.items():
        if name not in id_by_name:
            raise ValueError("--env-args: " + command_line.unknown_key(name, id_by_name))
        if not isinstance(args, dict):
            raise ValueError(f"--env-args: {name} needs an object of arguments, not {args!r}")
    return [Offer(env_id, fixed.get(name, {}), client_args) for name, env_id in id_by_name.items()]
