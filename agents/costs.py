"""Rate limits and prices of a server."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stepagent.agents.reply_cache import Completion
from stepagent.files import read_text

_KINDS = ("input", "cached", "output")
_LITELLM = {
    "input": "input_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "output": "output_cost_per_token",
}
"""Names of the prices in LiteLLM's list, which are of one token."""


class RateLimit:
    """Limits requests and tokens within any minute, for all threads together.

    Parameters
    ----------
    requests, tokens: maximum per window; None: no limit. A request that alone exceeds the tokens
        passes if there was no other in the window.
    window: in seconds.
    """

    def __init__(self, requests: int | None, tokens: int | None, window: float = 60.0):
        if any(limit is not None and limit < 1 for limit in (requests, tokens)):
            raise ValueError("rate limits must be at least 1 a minute")
        self._requests, self._tokens, self._window = requests, tokens, window
        self._lock = threading.Lock()
        self._spent: deque[list[float]] = deque()  # [when, tokens]
        self._until = 0.0

    def wait(self, tokens: int, stop: threading.Event) -> list[float]:
        """Waits until a request of about `tokens` tokens is allowed; returns its entry, for
        `correct`. Returns at once if `stop` is set meanwhile.
        """
        while True:
            with self._lock:
                delay = self._delay(tokens)
                if delay <= 0 or stop.is_set():
                    self._spent.append(entry := [time.monotonic(), float(tokens)])
                    return entry
            stop.wait(delay)

    def _delay(self, tokens: int) -> float:
        """Seconds until the request is allowed; 0 if it is now."""
        now = time.monotonic()
        while self._spent and now - self._spent[0][0] >= self._window:
            self._spent.popleft()
        delay, count, total = self._until - now, len(self._spent), sum(t for _, t in self._spent)
        for when, used in self._spent:
            few_requests = self._requests is None or count < self._requests
            if few_requests and (self._tokens is None or total + tokens <= self._tokens):
                break
            delay = max(delay, when + self._window - now)
            count, total = count - 1, total - used
        return delay

    def correct(self, entry: list[float], tokens: int) -> None:
        """The request actually took `tokens` tokens (0: the server did not say; the estimate
        stays)."""
        with self._lock:
            entry[1] = float(tokens or entry[1])

    def pause(self, seconds: float) -> None:
        """Holds all requests back for so long, because the server asked for it."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)


def price_of(model: str, prices: str | Path | Mapping[str, Any] | None) -> dict[str, float] | None:
    """Dollars per million tokens of input, cached (default: as input) and output; None: unknown.

    `prices` maps models to such prices, or is a JSON or YAML file that does. LiteLLM's price list
    (`model_prices_and_context_window.json`) is understood, too: a model is found there by its name,
    with a provider before it (`openai/…`) or without. Raises ValueError for what is neither.
    """
    if prices is None:
        return None
    table = _read(Path(prices)) if isinstance(prices, str | Path) else prices
    known = {
        str(name): _price(name, entry)
        for name, entry in table.items()
        if not _is_other(name, entry)
    }
    bare = model.rpartition("/")[2]
    ends = (name for name in sorted(known) if name.rpartition("/")[2] == bare)
    return known.get(model) or known.get(bare) or next((known[name] for name in ends), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        table = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read prices from {path}: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} must hold `model: {{input: …, output: …}}`, dollars per million")
    return table


def _is_other(name: Any, entry: Any) -> bool:
    """Whether an entry of LiteLLM's list is of something that is not paid by the token."""
    if not isinstance(entry, Mapping) or "litellm_provider" not in entry:
        return False
    return name == "sample_spec" or not set(_LITELLM.values()) - {_LITELLM["cached"]} <= set(entry)


def _price(model: Any, entry: Any) -> dict[str, float]:
    expected = f"the price of {model!r} must be {{input: …, output: …}}, dollars per million tokens"
    if isinstance(entry, Mapping) and _LITELLM["input"] in entry:
        named = {kind: entry[name] for kind, name in _LITELLM.items() if name in entry}
        try:
            entry = {kind: 1e6 * float(value) for kind, value in named.items()}
        except (TypeError, ValueError):
            raise ValueError(f"{expected}, not {entry!r}") from None
    if not isinstance(entry, Mapping) or not {"input", "output"} <= set(entry) <= set(_KINDS):
        raise ValueError(f"{expected} (cached is optional), not {entry!r}")
    try:
        price = {kind: float(entry.get(kind, entry["input"])) for kind in _KINDS}
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, not {entry!r}") from None
    if not all(0 <= value < math.inf for value in price.values()):
        raise ValueError(f"{expected}, not below 0")
    return price


def cost(completion: Completion, price: Mapping[str, float]) -> float:
    """Dollars for one completion.

    >>> cost(Completion("", read=1000, generated=100), {"input": 10, "cached": 10, "output": 30})
    0.013
    """
    prompt = completion.read * price["input"] + completion.cached * price["cached"]
    return (prompt + completion.generated * price["output"]) / 1e6
