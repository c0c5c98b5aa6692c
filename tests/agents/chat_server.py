"""A local server with an OpenAI-compatible chat completions API."""

from __future__ import annotations

import json
from typing import Any

from tests.servers import Scripted

KEY = "sk-very-secret"


def completion(text: str | None = "Action: one", **usage: Any) -> bytes:
    return json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, **usage},
        }
    ).encode()


class ChatServer(Scripted):
    """A chat completions API that repeats what it was last told."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"{self.address}/v1"

    def read(self, path: str, body: bytes) -> Any:
        return json.loads(body)

    def answer(self, request: Any) -> bytes:
        return completion("Action: " + request["messages"][-1]["content"])

    @property
    def keys(self) -> list[str | None]:
        return [headers.get("Authorization") for headers in self.headers]
