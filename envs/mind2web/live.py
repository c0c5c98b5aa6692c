"""`live=True`: the tasks on the bundled sites, played freely in a real browser.

Beyond the benchmark. The environment serves the site on the loopback interface and shows it in
headless Chromium, driven by Playwright; every other address is blocked. The agent sees the current
page, pruned as usual, and its answer is carried out. Nothing is teacher-forced: a wrong click has
its effect, and the history is the agent's own. The score is 1 once the site's state is what the
task asks for, and 0 until then; an episode may take twice the recorded answers plus four. An
optional extra: `pip install "stepagent[live]"`, and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from stepagent import optional
from stepagent.envs.core import Outcome
from stepagent.envs.loopback import OwnPagesHandler
from stepagent.envs.mind2web import sites
from stepagent.envs.mind2web.env import Mind2WebEnv, describe
from stepagent.envs.mind2web.prune import Page
from stepagent.envs.mind2web.questions import Decision, Direct, Question, Rounds
from stepagent.envs.mind2web.rank import ranked
from stepagent.envs.mind2web.records import Problems, RecordedStep, make_step, parse_candidates
from stepagent.envs.mind2web.sites.base import Site, SiteGoal, SiteState
from stepagent.errors import SetupError

T = TypeVar("T")
MAX_BODY = 65_536
"""Bytes of a form that the server accepts."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Writes node ids into the page, and what was typed and chosen, which HTML does not show otherwise.
_MARK = """() => {
  let n = 0;
  for (const e of document.querySelectorAll('*')) {
    e.setAttribute('backend_node_id', ++n);
    if (e.tagName === 'INPUT' && e.type === 'checkbox') e.toggleAttribute('checked', e.checked);
    else if (e.tagName === 'INPUT') e.setAttribute('value', e.value);
    if (e.tagName === 'OPTION') {
      e.toggleAttribute('selected', e.selected && (e.defaultSelected || e.index > 0));
    }
  }
  return document.documentElement.outerHTML;
}"""


class NoBrowser(SetupError, RuntimeError):
    """There is no Chromium that works."""


class LiveMind2WebEnv(Mind2WebEnv):
    """Mind2Web's bundled tasks in Chromium; the module's docstring has the rules.

    Parameters
    ----------
    browser: path of a Chromium; None: the first of `BROWSERS` on the path, else Playwright's own.
    timeout: seconds that the browser may take for one action.
    Others as in `Mind2WebEnv`; `data` must be None.

    Raises ValueError for other data, MissingPackage without Playwright, and NoBrowser from `reset`
    if there is no browser.
    """

    packages: ClassVar[tuple[str, ...]] = (*Mind2WebEnv.packages, "playwright")

    def __init__(self, *, browser: str | None = None, timeout: float = 10.0, **kwargs: Any):
        if kwargs.get("data") is not None:
            raise ValueError("live mode plays the bundled sites: `data` must be None")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}: it must be more than 0 seconds")
        super().__init__(**kwargs)
        optional.require("playwright", "live mode")
        self._chromium = _Chromium(browser, timeout)
        self._server: _Server | None = None
        self._goal: SiteGoal | None = None
        self._history: list[str] = []
        self._snapshot: Any = None

    expert_anywhere = False  # type: ignore[assignment]
    """The recorded actions fit the recorded pages only."""

    def step_limit(self, task_id: str) -> int:
        recorded = len(self._library.task(task_id).steps)
        return (2 * recorded + 4) * (1 if self.answers == "direct" else 8)

    def begin(self, task_id: str) -> str:
        self._task = self._library.task(task_id)
        self._orders = int(self.rng.integers(2**31))
        self.instruction = self._task.instruction
        site, self._goal = sites.goal_of(task_id)
        self._server = self._server or _Server()
        self._server.show(site)
        self._history = []
        self._chromium.open(self._server.address)
        self._question = self._look()
        return describe(self.instruction, self._history, self._question.text())

    def act(self, action: str) -> Outcome:
        assert self._question is not None
        assert self._server is not None
        assert self._goal is not None
        decision, wrong = self._question.answer(action)
        if decision is not None:
            if decision.node is not None and not wrong:
                wrong = self._carry_out(decision)
            self._question = self._look()
        done = self._server.state.get("done") == self._goal.done
        text = describe(self.instruction, self._history, self._question.text())
        text = "The task is done." if done else text
        return Outcome(
            observation=f"{wrong}\n\n{text}" if wrong else text,
            score=float(done),
            done=done,
            success=done,
            valid=not wrong,
            metrics={"task_success": float(done), "actions": float(len(self._history))},
        )

    def _look(self) -> Question:
        """The question about the browser's current page."""
        from lxml import html as lxml_html

        from stepagent.envs.mind2web.sites.browser import snapshot

        assert self._task is not None
        self._snapshot = lxml_html.document_fromstring(self._chromium.page())
        _, cleaned, candidate_records, _ = snapshot(self._snapshot)
        page = Page(cleaned)
        step = self._step_of(cleaned, candidate_records)
        ranker = self._library.ranker
        candidates = ranked(step, page, self.instruction, ranker)[: self.top_k]

        def draw(shown: Any) -> Any:
            return page.view(shown, self.page_budget)

        if self.answers == "direct":
            return Direct(tuple(candidates), draw, "")
        number = [self._orders, len(self._history)]
        order = np.random.default_rng(number).permutation(len(candidates))
        return Rounds([candidates[i] for i in order], draw, "")

    def _step_of(self, cleaned: str, candidate_records: list[dict[str, str]]) -> RecordedStep:
        problems = Problems()
        candidates = parse_candidates(candidate_records, "live", problems)
        return make_step("live", cleaned, {}, [], candidates, problems, self._history)

    def _carry_out(self, decision: Decision) -> str:
        """Carries it out in the browser; returns what was wrong ("" if nothing was)."""
        (element,) = self._snapshot.xpath("//*[@backend_node_id=$node]", node=decision.node)
        wrong = self._chromium.do(str(decision.node), decision.op, decision.value)
        if not wrong:
            self._history.append(sites.describe(element, decision.op, decision.value))
        return wrong

    def close(self) -> None:
        self._chromium.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._ended = True


class _Server:
    """Serves one site to one visitor on the loopback interface."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.state: SiteState = {}
        outer = self

        class Handler(OwnPagesHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query))
                assert outer.site is not None
                self._answer(200, outer.site.page(parts.path, query, outer.state))

            def do_POST(self) -> None:
                size = min(int(self.headers.get("Content-Length") or 0), MAX_BODY)
                fields = dict(parse_qsl(self.rfile.read(size).decode("utf-8", "replace")))
                assert outer.site is not None
                path = outer.site.submit(urlsplit(self.path).path, fields, outer.state)
                self._answer(303, "", {"Location": path})

            def _answer(self, status: int, html: str, more: Mapping[str, str] = {}) -> None:
                body = html.encode()
                self.send_response(status)
                headers = {"Content-Type": "text/html; charset=utf-8", **more}
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def show(self, site: Site) -> None:
        """Serves this site from now on, to a new visitor."""
        self.site, self.state = site, {}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Chromium:
    """A headless Chromium. Playwright must be used from one thread only: it has its own here."""

    def __init__(self, path: str | None, timeout: float):
        self._path, self._timeout = path, timeout
        self._thread: ThreadPoolExecutor | None = None
        self._playwright: Any = None
        self._page: Any = None
        self._browser: Any = None

    def _call(self, function: Callable[[], T]) -> T:
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="chromium")
        return self._thread.submit(function).result(timeout=60 + 3 * self._timeout)

    def open(self, address: str) -> None:
        """Starts a new visit to an address; starts the browser the first time."""

        def work() -> None:
            if self._browser is None or not self._browser.is_connected():
                self._start()
            if self._page is not None:
                self._page.context.close()
            context = self._browser.new_context(viewport={"width": 1000, "height": 760})
            context.set_default_timeout(1000 * self._timeout)
            context.route("**/*", lambda route: _only(route, address))
            self._page = context.new_page()
            self._page.goto(address)

        self._call(work)

    def _start(self) -> None:
        from playwright.sync_api import Error, sync_playwright

        path = self._path or next(filter(None, map(shutil.which, BROWSERS)), None)
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        self._playwright = self._playwright or sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"] if root else []
            )
        except Error as error:
            raise NoBrowser(
                f"live mode found no working Chromium ({str(error).splitlines()[0]}): install "
                "one (`playwright install chromium`, or your system's package) or name its path "
                "in the argument `browser`"
            ) from None

    def page(self) -> str:
        """The page's current HTML, with node ids and with what the visitor filled in."""
        return self._call(lambda: self._page.evaluate(_MARK))

    def do(self, node: str, op: str, value: str) -> str:
        """Carries out one action; returns what was wrong ("" if nothing was)."""

        def work() -> str:
            from playwright.sync_api import Error

            element = self._page.locator(f'[backend_node_id="{node}"]')
            try:
                if op == "TYPE":
                    element.fill(value)
                elif op == "SELECT":
                    element.select_option(label=value)
                else:
                    element.click()
                    self._page.wait_for_load_state()
            except Error as error:
                return f"That could not be done: {str(error).splitlines()[0][:200]}"
            return ""

        return self._call(work)

    def screenshot(self, path: Path) -> None:
        """The page as a picture (PNG)."""
        self._call(lambda: self._page.screenshot(path=str(path), full_page=True))

    def close(self) -> None:
        def work() -> None:
            if self._browser is not None:
                self._browser.close()
            if self._playwright is not None:
                self._playwright.stop()

        if self._thread is not None:
            try:
                self._call(work)
            finally:
                self._thread.shutdown(wait=False)
        self._thread = self._playwright = self._page = self._browser = None


def _only(route: Any, address: str) -> None:
    if route.request.url.startswith(address + "/"):
        route.continue_()
    else:
        route.abort()
