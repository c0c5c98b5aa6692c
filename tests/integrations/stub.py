"""Stub models behind an OpenAI-compatible server; one plays the expert's actions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stepagent import envs
from stepagent.envs.react import render
from tests.servers import Scripted


class StubModel(Scripted):
    """Says what `reply` says, at once or as a stream."""

    def read(self, path: str, body: bytes) -> Any:
        return json.loads(body) if body else {"path": path}

    def answer(self, request: Any) -> bytes:
        message = {"role": "assistant", "content": self.reply(request["messages"])}
        streamed = request.get("stream", False)
        completion = {
            "id": "chatcmpl-stub",
            "object": "chat.completion.chunk" if streamed else "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {"index": 0, "delta" if streamed else "message": message, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        text = json.dumps(completion)
        return f"data: {text}\n\ndata: [DONE]\n\n".encode() if streamed else text.encode()

    def answer_headers(self, request: Any) -> dict[str, str]:
        streamed = request.get("stream", False)
        return {"Content-Type": "text/event-stream" if streamed else "application/json"}

    def reply(self, messages: Sequence[dict[str, Any]]) -> str:
        return "I have no idea."


class ExpertModel(StubModel):
    """Recognizes the task by the first observation, and says the n-th turn of its expert's plan."""

    def __init__(self, env_id: str, tasks: Sequence[str], seed: int = 0, **arguments: Any):
        super().__init__()
        env = envs.make(env_id, **arguments)
        self.plans = {}
        for task in tasks:
            observation, _ = env.reset(seed=seed, options={"task_id": task})
            self.plans[observation] = env.expert_plan()
        env.close()

    def reply(self, messages: Sequence[dict[str, Any]]) -> str:
        opening = _text(next(m for m in messages if m["role"] == "user")["content"])
        turn = sum(message["role"] == "assistant" for message in messages)
        return render(*self.plans[opening][turn])


def _text(content: Any) -> str:
    """The observation in a message, which verifiers' own OpenEnv task set wraps in JSON."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    try:
        return json.loads(content)["observation"]["text"]
    except (ValueError, TypeError, KeyError):
        return content
