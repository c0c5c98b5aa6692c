"""Six kinds of server and two hosted APIs, with the answers that theirs were seen to give.

A token is a word here. Each kind differs in its address, in how it says that a request is too long,
whether its model has a system role, where it puts what the model thought, and the ids of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.servers import Scripted

Body = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Kind:
    """What is particular about a kind of server."""

    name: str
    too_long: Callable[[int, int, int], tuple[int, Body]]
    """Status and body for a prompt, a reply's limit and a context, in tokens."""
    no_system: tuple[int, Body]
    """Status and body for a system role that the model's template does not have."""
    thought: str = ""
    """The message's field for what was thought; "": it stands in the text."""
    paths: tuple[str, ...] = ("/v1/chat/completions",)
    missing: tuple[int, Body] = (404, {"detail": "Not Found"})
    at_limit: str = "length"
    ids: str = ""
    """Where it gives the ids of tokens: choice or verbose; "": it ignores who asks for them."""
    no_tools: tuple[int, Body] = (400, {"error": {"message": "the model does not support tools"}})
    """Status and body for functions that its model, or its start, does not allow."""
    unknown: Callable[[str], tuple[int, Body]] | None = None
    """Status and body for a field that it does not know; None: it ignores such."""


def _openai_error(status: int, message: str, **more: Any) -> tuple[int, Body]:
    return status, {"error": {"message": message, "type": "invalid_request_error", **more}}


def _vllm_error(message: str) -> tuple[int, Body]:
    return 400, {
        "object": "error",
        "message": message,
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }


def _vllm(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    return _vllm_error(
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + reply} tokens ({prompt} in the messages, {reply} in the completion). Please "
        "reduce the length of the messages or completion."
    )


def _sglang(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    if prompt >= context:
        return _vllm_error(
            f"The input ({prompt} tokens) is longer than the model's context length ({context} "
            "tokens)."
        )
    return _vllm_error(
        f"Requested token count exceeds the model's maximum context length of {context} tokens. "
        f"You requested a total of {prompt + reply} tokens: {prompt} tokens from the input "
        f"messages and {reply} tokens for the completion."
    )


def _tgi(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    message = (
        f"Input validation error: `inputs` must have less than {context} tokens. Given: {prompt}"
        if prompt >= context
        else f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {context}. "
        f"Given: {prompt} `inputs` tokens and {reply} `max_new_tokens`"
    )
    return 422, {"error": message, "error_type": "validation"}


def _llama_cpp(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    return 400, {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": prompt,
            "n_ctx": context,
        }
    }


def _ollama(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    return _openai_error(
        400, "the input length exceeds the context length", type="api_error", param=None, code=None
    )


def _litellm(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    message = (
        "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: "
        f"OpenAIException - This model's maximum context length is {context} tokens. However, "
        f"your messages resulted in {prompt} tokens."
    )
    return _openai_error(400, message, type=None, param=None, code="400")


def _openai(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    message = (
        f"This model's maximum context length is {context} tokens. However, your messages resulted "
        f"in {prompt} tokens. Please reduce the length of the messages."
    )
    return _openai_error(400, message, param="messages", code="context_length_exceeded")


def _gemini(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    message = (
        f"The input token count ({prompt}) exceeds the maximum number of tokens allowed "
        f"({context})."
    )
    return 400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}]


def _anthropic(prompt: int, reply: int, context: int) -> tuple[int, Body]:
    message = (
        f"input length and `max_tokens` exceed context limit: {prompt} + {reply} > {context}, "
        "decrease input length or `max_tokens` and try again"
    )
    return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


def _unknown_to_openai(name: str) -> tuple[int, Body]:
    return _openai_error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def _unknown_to_gemini(name: str) -> tuple[int, Body]:
    message = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return 400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}]


def _unknown_to_anthropic(name: str) -> tuple[int, Body]:
    return _openai_error(400, f"{name}: Extra inputs are not permitted")


_ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
KINDS = (
    Kind(
        "vllm",
        _vllm,
        _vllm_error("System role not supported"),
        thought="reasoning",
        ids="choice",
        no_tools=_openai_error(
            400,
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
            "set",
            type="BadRequestError",
        ),
    ),
    Kind("sglang", _sglang, _vllm_error(_ALTERNATE), thought="reasoning_content", ids="choice"),
    Kind(
        "tgi",
        _tgi,
        (422, {"error": "Template error: System role not supported", "error_type": "template"}),
        missing=(404, {"error": "not found"}),
    ),
    Kind(
        "llama.cpp",
        _llama_cpp,
        (500, {"error": {"code": 500, "message": "System role not supported", "type": "server"}}),
        thought="reasoning_content",
        ids="verbose",
        no_tools=(500, {"error": {"code": 500, "message": "tools param requires --jinja flag"}}),
        paths=("/v1/chat/completions", "/chat/completions"),
    ),
    Kind(
        "ollama",
        _ollama,
        _openai_error(400, "template: only user and assistant roles are supported"),
        thought="reasoning",
        missing=(405, {"error": "method not allowed"}),
    ),
    Kind(
        "litellm",
        _litellm,
        _openai_error(400, "litellm.BadRequestError: System role not supported", code="400"),
        no_tools=_openai_error(
            400, "litellm.UnsupportedParamsError: it does not support parameters: ['tools']"
        ),
        thought="reasoning_content",
        paths=("/v1/chat/completions", "/chat/completions"),
    ),
    Kind(
        "openai",
        _openai,
        _openai_error(
            400,
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            param="messages[0].role",
            code="unsupported_value",
        ),
        unknown=_unknown_to_openai,
    ),
    Kind(
        "gemini",
        _gemini,
        (400, [{"error": {"code": 400, "message": "Developer instruction is not enabled"}}]),
        at_limit="MAX_TOKENS",
        unknown=_unknown_to_gemini,
    ),
    Kind(
        "anthropic",
        _anthropic,
        _openai_error(400, "system: role 'system' not supported"),
        unknown=_unknown_to_anthropic,
    ),
)


class KindServer(Scripted):
    """A server of one kind; its model answers `Action: ` and the observation's first words.

    Parameters
    ----------
    context: tokens that prompt and reply may have.
    has_system, has_tools: whether the model's template has a system role, and functions.
    thinks: words that it thinks before each reply.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        context: int = 1000,
        has_system: bool = True,
        has_tools: bool = True,
        thinks: int = 0,
    ):
        super().__init__()
        self.has_tools = has_tools
        self.kind, self.context, self.has_system = kind, context, has_system
        self.thinks = thinks

    def read(self, path: str, body: bytes) -> Any:
        return {"path": path, **json.loads(body)}

    def answer(self, request: Any) -> bytes | tuple[int, bytes]:
        status, body = self._answer(request)
        return status, json.dumps(body).encode()

    def _answer(self, request: Any) -> tuple[int, Body]:
        if request["path"] not in self.kind.paths:
            return self.kind.missing
        messages = request["messages"]
        if messages[0]["role"] == "system" and not self.has_system:
            return self.kind.no_system
        roles = {message["role"] for message in messages}
        if not self.has_tools and ("tools" in request or "tool" in roles):
            return self.kind.no_tools
        for name in request:
            if name.startswith("return_") and self.kind.unknown:
                return self.kind.unknown(name)
        prompt = sum(len(message["content"].split()) for message in messages)
        limit = request["max_tokens"]
        if prompt + limit > self.context:
            return self.kind.too_long(prompt, limit, self.context)
        thought = " ".join(["hm"] * min(self.thinks, limit))
        words = ["Action:", *messages[-1]["content"].split()][: limit - len(thought.split())]
        text = " ".join(words)
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if thought and self.kind.thought:
            message[self.kind.thought] = thought
        elif thought:
            message["content"] = f"{thought}</think>{text}" if text else thought
        used = len(thought.split()) + len(words)
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self.kind.at_limit if used >= limit else "stop",
        }
        usage = {"prompt_tokens": prompt, "completion_tokens": used}
        answer: dict[str, Any] = {"object": "chat.completion", "choices": [choice], "usage": usage}
        ids = [len(word) for word in (*thought.split(), *words)]
        if self.kind.ids == "choice" and request.get("return_token_ids"):
            choice["token_ids"], answer["prompt_token_ids"] = ids, [1] * prompt
        if self.kind.ids == "verbose" and request.get("return_tokens"):
            answer["__verbose"] = {"content": text, "tokens": ids}
        return 200, answer
