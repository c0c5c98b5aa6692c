"""Live Wikipedia (or any MediaWiki with the TextExtracts extension) through its API.

A page is requested by its title (`prop=extracts`, redirects followed); if there is none, or only a
disambiguation page, the search (`list=search`) gives similar ones. Answers are cached on disk
permanently, so that a query costs only one request ever and evaluations are repeatable.

Wikimedia asks clients to identify themselves: set `$STEPAGENT_CONTACT` to a mail address or URL.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import requests

from stepagent.envs.wikipedia.corpus import SIMILAR, Corpus, Page, is_slip, key, page
from stepagent.errors import UserError
from stepagent.files import cache_folder, read_cached, write_cached

WIKIPEDIA = "https://en.wikipedia.org/w/api.php"
MAX_BYTES = 8 << 20
"""Bytes that an answer may have."""
MAX_SEARCH = 300
"""Characters of a search that Wikipedia accepts."""
MAX_WAIT = 30.0
"""Seconds that a server may ask to wait before the next attempt."""
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""
_BUSY = ("maxlag", "ratelimited", "readonly", "internal_api_error")
"""Codes of API errors (sent with status 200) after which the same request may succeed."""
_NO_TITLE = set("#<>[]{}|\x7f")
"""Characters that titles cannot contain."""


class LiveError(UserError, RuntimeError):
    """The API cannot be reached or refuses; the message says why. The episode continues."""


class LiveCorpus(Corpus):
    """Pages of a MediaWiki, requested one at a time and cached.

    Parameters
    ----------
    url: of the API, `…/api.php`.
    timeout: seconds for one answer, from the first to the last byte.
    retries: further attempts after a time-out, a broken connection, an unreadable answer, or a
        status or error that says "later".
    backoff: seconds before the first further attempt, doubled each time, or what Retry-After says.
    rate: maximum requests per second of this process.

    Raises ValueError for an invalid URL, and LiveError from `find`.
    """

    def __init__(
        self,
        url: str = WIKIPEDIA,
        *,
        timeout: float = 10.0,
        retries: int = 3,
        backoff: float = 1.0,
        rate: float = 5.0,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the API's URL {url!r} must start with http:// or https://")
        if timeout <= 0 or retries < 0 or backoff < 0 or rate <= 0:
            raise ValueError("wants timeout > 0, retries ≥ 0, backoff ≥ 0 and rate > 0")
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self.requests = 0
        """Requests sent so far (not counting answers from the cache)."""
        self._interval, self._next = 1 / rate, 0.0
        self._lock, self._sessions = threading.Lock(), threading.local()

    def find(self, entity: str) -> Page | list[str]:
        if not _NO_TITLE & set(entity) and (result := self._page(entity)):
            return result
        hits = self._ask(
            list="search", srsearch=entity[:MAX_SEARCH], srlimit=str(SIMILAR), srprop=""
        )
        titles = [hit["title"] for hit in hits.get("search", ())]
        query = key(entity)
        for title in titles:
            near = key(title) == query or is_slip(query, key(title))
            if near and (result := self._page(title)):
                return result
        return titles[:SIMILAR]

    def has(self, title: str) -> bool:
        """Always false: live pages are complete and have no further parts."""
        return False

    def checksum(self) -> str:
        return ""

    def _page(self, title: str) -> Page | None:
        """The page of a title or redirect; None if there is none with text."""
        answer = self._ask(
            prop="extracts|pageprops",
            ppprop="disambiguation",
            explaintext="1",
            exsectionformat="wiki",
            redirects="1",
            titles=title,
        )
        for record in answer.get("pages", ()):
            extract = record.get("extract") or ""
            if "disambiguation" not in record.get("pageprops", {}) and extract.strip():
                lines = [line for line in extract.split("\n") if line.strip()]
                return page(record["title"], [x for x in lines if not x.startswith("==")])
        return None

    # Asking ---------------------------------------------------------------------------------------

    def _ask(self, **parameters: str) -> dict[str, Any]:
        """The `query` part of the API's answer, from the cache if it is there."""
        query = {"action": "query", "format": "json", "formatversion": "2", **parameters}
        path = self._cache_path(query)
        kept = read_cached(path)
        if kept is not None:
            return json.loads(kept)
        answer = self._request(query)
        write_cached(path, json.dumps(answer))
        return answer

    def _cache_path(self, query: dict[str, str]) -> Path:
        request = json.dumps([self.url, query], sort_keys=True).encode("utf-8", "replace")
        name = hashlib.sha256(request).hexdigest()[:32]
        return cache_folder() / "wikipedia" / "live" / name[:2] / f"{name}.json"

    def _request(self, query: dict[str, str]) -> dict[str, Any]:
        reason = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2 ** (attempt - 1) if attempt else 0.0
            try:
                return self._once(query, wait)
            except _Later as later:
                reason = str(later)
                self._hold_back(later.wait)
            except requests.RequestException as error:
                reason = _innermost(error)
        raise LiveError(
            f"The encyclopedia at {self.url} cannot be reached ({reason}; "
            f"{self.retries + 1} attempts)."
        )

    def _once(self, query: dict[str, str], wait: float) -> dict[str, Any]:
        """One request. Raises _Later if another may succeed, LiveError if none will."""
        self._take_turn(wait)
        deadline = time.monotonic() + self.timeout
        with self._session().get(
            self.url, params={**query, "maxlag": "5"}, timeout=self.timeout, stream=True
        ) as response:
            if response.status_code in _AGAIN:
                raise _Later(f"status {response.status_code}", _retry_after(response))
            if response.status_code != 200:
                raise LiveError(
                    f"The encyclopedia at {self.url} answered with status {response.status_code}."
                )
            body = bytearray()
            for chunk in response.iter_content(1 << 14):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise LiveError(f"The page is larger than {MAX_BYTES >> 20} MB.")
                if time.monotonic() > deadline:
                    raise _Later(f"not done within {self.timeout:g} s")
            wait = _retry_after(response)
        try:
            answer = json.loads(body)
            error = answer.get("error") or {}
            code = str(error.get("code", ""))
        except (ValueError, AttributeError, RecursionError):
            raise _Later("an answer that is no JSON object") from None
        if code.startswith(_BUSY):
            raise _Later(f"{code}: {error.get('info', '')}", wait)
        if code:
            raise LiveError(f"The encyclopedia refuses the request ({code}).")
        result = answer.get("query")
        if not _answers(query, result):
            raise _Later("an answer of another form")
        return result

    def _take_turn(self, wait: float) -> None:
        """Sleeps until the rate (and the back-off) allows another request."""
        with self._lock:
            now = time.monotonic()
            at = max(now + wait, self._next)
            self._next = at + self._interval
            self.requests += 1
        time.sleep(max(0.0, at - now))

    def _hold_back(self, seconds: float) -> None:
        """No thread sends a request before that time."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "session"):
            session = requests.Session()
            session.headers["User-Agent"] = user_agent()
            self._sessions.session = session
        return self._sessions.session


def _answers(query: Mapping[str, str], result: Any) -> bool:
    """Whether it has the form of the hits or pages that were asked for: only what does is kept. A
    title has a page at least, one that is missing."""
    if not isinstance(result, dict):
        return False
    records = result.get("search") if "srsearch" in query else result.get("pages") or None
    return isinstance(records, list) and all(
        isinstance(record, dict)
        and isinstance(record.get("title"), str)
        and isinstance(record.get("extract") or "", str)
        and isinstance(record.get("pageprops", {}), dict)
        for record in records
    )


class _Later(Exception):
    """The request may succeed if it is sent again after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def user_agent() -> str:
    """The user agent in Wikimedia's format: the program, its version, and `$STEPAGENT_CONTACT`."""
    try:
        own = version("stepagent")
    except PackageNotFoundError:
        own = "0"
    contact = os.environ.get("STEPAGENT_CONTACT", "research on language agents")
    return f"StepAgent/{own} ({contact}) python-requests/{requests.__version__}"


def _retry_after(response: requests.Response) -> float:
    try:
        return min(MAX_WAIT, max(0.0, float(response.headers.get("Retry-After", "0"))))
    except ValueError:  # a date: the back-off suffices
        return 0.0


def _innermost(error: BaseException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__
