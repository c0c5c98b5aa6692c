"""What servers with OpenAI's chat completions API answer: a completion, or why there is none.

Servers agree on the request and on little else. An answer is read by its structure first (status,
`code`, `type`, `param`, `finish_reason`, counts of tokens), and by its wording only where a server
says no more:

| server        | too long a request                       | thinking            | at the limit   |
|---------------|------------------------------------------|---------------------|----------------|
| OpenAI        | 400, `context_length_exceeded`           |                     | `length`       |
| vLLM          | 400, `param`, counts in the text         | `reasoning`         | `length`       |
| SGLang        | 400, counts in the text                  | `reasoning_content` | `length`       |
| TGI           | 422, `error_type: validation`            | in the text         | `length`       |
| llama.cpp     | 400, `exceed_context_size_error`, `n_ctx` | `reasoning_content` | `length`       |
| Ollama        | drops the beginning, or 400              | `reasoning`         | `length`       |
| LiteLLM       | 400, `ContextWindowExceededError`        | `reasoning_content` | `length`       |
| Anthropic     | 400, `a + b > c`                         |                     | `max_tokens`   |
| Gemini        | 400 in a list, `INVALID_ARGUMENT`        |                     | `MAX_TOKENS`   |
| Mistral       | 400, code 3051                           | parts of `content`  | `model_length` |

The ids of a reply's tokens are given by vLLM (0.10.2) and SGLang in the choice's `token_ids`, and
by llama.cpp in `__verbose` (of a server with `-lv 10`) or beside the tokens' `logprobs`; those of
the prompt by vLLM, in `prompt_token_ids`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepagent.agents.reply_cache import Completion
from stepagent.agents.tool_calls import of_message

TOKEN_IDS = {"return_token_ids": True, "return_tokens": True}
"""What asks for the ids of a reply's tokens: vLLM and SGLang, llama.cpp."""
LENGTH, REFUSAL, FILTER, EMPTY = "length", "refusal", "filter", "empty"
"""How a reply ended, if not by itself: at the length limit, as a refusal, in a content filter, or
before its first word (see `agents.core.ModelReply`)."""

_ENDINGS = {
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_length"), LENGTH),
    **dict.fromkeys(("refusal",), REFUSAL),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "safety", "recitation", "sensitive", "blocklist"),
        FILTER,
    ),
    "prohibited_content": FILTER,
}
_TOO_LONG_CODES = re.compile(
    r"context_?length|exceed_context|context_?window|string_above_max|too_(long|large)|\b3051\b",
    re.IGNORECASE,
)
_TOO_LONG_WORDS = re.compile(
    r"context.{0,3}length|context (window|size|limit)|max_model_len|too many tokens"
    r"|(prompt|input|request|messages?) (is|are) too (long|large)|too large for model"
    r"|tokens?`?.{0,60}(must be <=|must have less than|exceed)|exceeds?.{0,40}tokens"
    r"|`inputs` must have less than|longer than the (model|maximum)"
    r"|max_tokens must be at least 1, got",
    re.IGNORECASE,
)
_FILTER_CODES = re.compile(r"content_?filter|content_?policy|moderation|data_inspection", re.I)
_FILTER_WORDS = re.compile(
    r"content exists risk|content management policy|content policy|(input|prompt) was flagged",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown|unrecognized|does not support|unexpected|not permitted"
    r"|extra_forbidden",
    re.IGNORECASE,
)
_NO_SYSTEM = re.compile(
    r"\bsystem\b.{0,40}\b(roles?|messages?|prompts?|instructions?)\b|\brole\b.{0,60}\bsystem\b"
    r"|developer instruction|roles must alternate|only (supports? )?user and assistant",
    re.IGNORECASE | re.DOTALL,
)
_TOOLS = re.compile(
    r"\btools?\b|\btool_(choice|calls?|call_id)\b|function[ _-]?calling|\brole\b.{0,20}\btool\b",
    re.IGNORECASE,
)
_NEEDS = re.compile(r"requires?\b|\benabled?\b|no endpoints", re.IGNORECASE)
_COUNT = r"(?<!\d)(?<!\d,)(\d++(?:,\d++)*+)"
_LIMITS = (
    re.compile(rf">\s*{_COUNT}"),
    re.compile(
        r"(?:maximum|context (?:length|size|window)|limit|<=|less than|at most|model with|allowed)"
        rf"\D{{0,40}}?{_COUNT}",
        re.IGNORECASE,
    ),
)
_PROMPTS = (
    re.compile(rf"{_COUNT} \+ \d[\d,]* >"),
    re.compile(
        rf"{_COUNT}(?: in the messages| in your prompt| input tokens| `inputs` tokens"
        r"| tokens from the input)",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?:messages resulted in|prompt contains(?: at least)?|input token count \(|too long:"
        rf"|(?:input|request|prompt) \(|given:|request has)\s*{_COUNT}",
        re.IGNORECASE,
    ),
)
_LENGTH_PARAMETERS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


class Unreadable(Exception):
    """An answer with status 200 that is not a chat completion."""


@dataclass(frozen=True)
class Rejection:
    """An answer that is no completion."""

    status: int
    text: str
    """All of it."""
    message: str
    codes: str
    """The error's code, type and status, separated by blanks."""
    param: str
    counts: Mapping[str, Any]
    """The error object, for token counts in fields of their own."""

    @staticmethod
    def read(status: int, text: str) -> Rejection:
        """Never raises: what is not JSON is a message."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            return Rejection(status, text, text, "", "", {})
        body = body[0] if isinstance(body, list) and body else body  # Gemini's errors are lists
        if not isinstance(body, dict):
            return Rejection(status, text, text, "", "", {})
        error = body.get("error") or body.get("detail") or body
        if isinstance(error, list) and error and isinstance(error[0], dict):  # FastAPI's details
            error = {"message": error[0].get("msg"), **error[0]}
        if not isinstance(error, dict):
            error = {**body, "message": error}
        codes = " ".join(str(error.get(k) or "") for k in ("code", "type", "status", "error_type"))
        where = error.get("loc")
        param = error.get("param") or (where[-1] if isinstance(where, list) and where else "")
        message = error.get("message")
        message = message if isinstance(message, str) else text
        return Rejection(status, text, message, codes, str(param), error)

    @property
    def too_long(self) -> bool:
        """Prompt and reply together exceed the context, or the body what the server reads."""
        if self.status not in (400, 413, 422, 500):
            return False
        return (
            self.status == 413
            or "n_ctx" in self.counts
            or bool(_TOO_LONG_CODES.search(self.codes))
            or bool(_TOO_LONG_WORDS.search(self.message))
            or self.reply_too_long
        )

    @property
    def reply_too_long(self) -> bool:
        """`max_tokens` alone exceeds what the model can generate."""
        return self.param in _LENGTH_PARAMETERS and not self.unsupported

    @property
    def limit(self) -> int | None:
        """Tokens that prompt and reply may have together (or only the reply: `reply_too_long`)."""
        return _integer(self.counts.get("n_ctx")) or _first(_LIMITS, self.message)

    @property
    def prompt(self) -> int | None:
        """Tokens that the prompt has."""
        return _integer(self.counts.get("n_prompt_tokens")) or _first(_PROMPTS, self.message)

    @property
    def filtered(self) -> bool:
        """A content filter does not let the prompt through."""
        return self.status in (400, 403, 422, 451) and bool(
            _FILTER_CODES.search(self.codes) or _FILTER_WORDS.search(self.message)
        )

    @property
    def unsupported(self) -> bool:
        """The server speaks of something that it does not take."""
        return bool(_UNSUPPORTED.search(f"{self.codes} {self.message}"))

    @property
    def no_system_role(self) -> bool:
        """The model's template has no system role."""
        if self.status not in (400, 422, 500):
            return False
        return bool(
            re.fullmatch(r"messages[.\[]0\]?\.role", self.param) or _NO_SYSTEM.search(self.message)
        )

    @property
    def no_tools(self) -> bool:
        """The server, or its model, takes no functions as it is."""
        if self.status not in (400, 404, 422, 500, 501) or self.too_long:
            return False
        about = f"{self.param} {self.message}"
        return bool(_TOOLS.search(about)) and (self.unsupported or bool(_NEEDS.search(about)))

    def refuses(self, name: str) -> bool:
        """Whether this is about a parameter that the model does not take."""
        named = self.param == name or re.search(rf"\b{name}\b", self.message) is not None
        return named and self.unsupported


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _first(patterns: Iterable[re.Pattern[str]], text: str) -> int | None:
    for pattern in patterns:
        if match := pattern.search(text[:2000]):
            return int(match.group(1).replace(",", ""))
    return None


def read_completion(text: str) -> Completion | Rejection:
    """The completion in a body with status 200, or the error that some servers send with it.

    Raises Unreadable with what the body is.
    """
    try:
        body = json.loads(text)
        choices, usage = body.get("choices"), body.get("usage") or {}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Unreadable("something other than a chat completion") from None
    error = body.get("error") or (_at(choices, 0) or {}).get("error")
    if error and not (_at(choices, 0) or {}).get("message"):
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
        return Rejection.read(status, json.dumps({"error": error}))
    if "choices" not in body:
        raise Unreadable("something other than a chat completion")
    choice = _at(choices, 0) or {}
    message = choice.get("message")
    if message is None and _reason(choice) in _ENDINGS:
        message = {}  # a filter may leave nothing else
    if not isinstance(message, dict):
        raise Unreadable("no choice in it")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = _token_count(details, "cached_tokens")
    content, thought = _contents(message)
    return Completion(
        content,
        read=max(0, _token_count(usage, "prompt_tokens") - cached),
        cached=cached,
        generated=_token_count(usage, "completion_tokens"),
        ending=_ending(choice, message, content),
        thought=thought,
        ids=_ids(choice, body),
        prompt_ids=_first_ids([body.get("prompt_token_ids"), choice.get("prompt_token_ids")]),
    )


def _at(items: Any, index: int) -> dict[str, Any] | None:
    if isinstance(items, list) and len(items) > index and isinstance(items[index], dict):
        return dict(items[index])
    return None


def _contents(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message says and what was thought before it."""
    content, thoughts = message.get("content") or "", []
    for name in ("reasoning_content", "reasoning"):
        if isinstance(thought := message.get(name), str) and thought.strip():
            thoughts = [thought.strip()]
            break
    if not isinstance(content, str):
        thoughts += list(_parts(content, "thinking"))
        content = "".join(_parts(content, "text"))
    if not content and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if call := of_message(message):
        content = f"{content.strip()}\n{call}".strip()
    return content, "\n".join(thoughts)


def _parts(content: Any, kind: str) -> Iterator[str]:
    """The texts in the parts of a content that are of a kind."""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type", "text") == kind:
            value = part.get(kind)
            if isinstance(value, list):  # Mistral's thinking is a list of texts
                value = "".join(_parts(value, "text"))
            if isinstance(value, str):
                yield value


def _reason(choice: Mapping[str, Any]) -> str:
    """Why a reply ended; some servers write what exactly behind a colon."""
    return str(choice.get("finish_reason") or "").lower().partition(":")[0]


def _ending(choice: Mapping[str, Any], message: Mapping[str, Any], content: str) -> str:
    if _reason(choice) in _ENDINGS:
        return _ENDINGS[_reason(choice)]
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        return REFUSAL
    return "" if content.strip() else EMPTY


def _ids(choice: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of a reply's tokens; () where there are none, or nonsense."""
    verbose, logprobs = body.get("__verbose"), choice.get("logprobs")
    places: list[Any] = [choice.get("token_ids")]
    if isinstance(verbose, dict):
        places.append(verbose.get("tokens"))
    if isinstance(logprobs, dict) and isinstance(content := logprobs.get("content"), list):
        places.append([entry.get("id") if isinstance(entry, dict) else None for entry in content])
    return _first_ids(places)


def _first_ids(places: Iterable[Any]) -> tuple[int, ...]:
    """The first list of token ids."""
    for ids in places:
        if isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < 2**31 for i in ids):
            return tuple(ids)
    return ()


def _token_count(usage: Any, name: str) -> int:
    """A count that a server reports; 0 if it reports none, or nonsense."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def fold_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with its system message in front of the first observation, for models
    without a system role."""
    if not messages or messages[0]["role"] != "system":
        return [dict(message) for message in messages]
    system, first, *rest = (dict(message) for message in messages)
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
