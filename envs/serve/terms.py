"""What a server offers, what it grants, and how it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from stepagent import command_line


class Refusal(Exception):
    """An answer that is an error: HTTP status, code and words (`docs/servers.md` lists them)."""

    def __init__(self, status: int, code: str, message: str, kind: str = "", retry_after: int = 0):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.error = {"code": code, "message": message, **({"type": kind} if kind else {})}


@dataclass(frozen=True)
class Limits:
    """What a server grants. Seconds, bytes, numbers of sessions."""

    max_sessions: int = 256
    idle_seconds: float = 1800.0
    step_seconds: float = 120.0
    start_seconds: float = 300.0
    """Of making an environment and of a reset, which may have to load a world first."""
    max_body: int = 4 << 20


@dataclass
class Offer:
    """One environment that a server has to offer."""

    env_id: str
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments that the server fixes, such as where its data lie."""
    allowed: list[str] | None = None
    """Arguments that clients may set. None: any but the fixed ones."""

    @property
    def name(self) -> str:
        """The id without the module that registers it."""
        return self.env_id.rsplit(":", 1)[-1]

    def lets_choose(self, name: str) -> bool:
        """Whether clients may set an argument."""
        return name not in self.args and (self.allowed is None or name in self.allowed)

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The client's arguments and the server's. Refuses those a client may not set."""
        for name, value in given.items():
            if name in self.args and value != self.args[name]:
                why = f"the server fixes it to {self.args[name]!r}"
            elif name not in self.args and self.allowed is not None and name not in self.allowed:
                why = f"it takes {', '.join(self.allowed) or 'none'} (--client-args)"
            else:
                continue
            raise Refusal(403, "argument", f"{self.name}: clients may not set {name!r} here: {why}")
        return {**given, **self.args}


def failure(error: BaseException) -> Refusal:
    """The answer to what an environment raised; a Refusal stays what it is."""
    if isinstance(error, Refusal):
        return error
    kind = type(error).__name__
    status = (
        422 if kind in ("ValueError", "TypeError", "ResetNeeded", "NotImplementedError") else 500
    )
    return Refusal(status, "environment", (str(error) or repr(error))[:4000], kind)


def encode(answer: Any) -> bytes:
    """An answer as JSON; numbers of numpy become plain ones."""
    return json.dumps(answer, ensure_ascii=False, default=_plain).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def offers(
    env_ids: list[str], env_args: dict[str, Any], client_args: list[str] | None
) -> list[Offer]:
    """What a server offers, from its options. Raises ValueError for arguments of no environment."""
    named = {env_id.rsplit(":", 1)[-1]: env_id for env_id in env_ids}
    fixed = {name.rsplit(":", 1)[-1]: args for name, args in env_args.items()}
    for name, args in fixed.items():
        if name not in named:
            raise ValueError("--env-args: " + command_line.unknown_key(name, named))
        if not isinstance(args, dict):
            raise ValueError(f"--env-args: {name} needs an object of arguments, not {args!r}")
    return [Offer(env_id, fixed.get(name, {}), client_args) for name, env_id in named.items()]
