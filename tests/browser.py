"""A browser for tests: Chromium by Playwright, and the accessibility checks of axe-core."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest

HOW = (
    "tests in a browser need Chromium (your system's package) and `.venv/bin/python -m pip install "
    "playwright axe-playwright-python`"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launched() -> Iterator[Any]:
    """A running Chromium. Skips the test where there is none, in words that say how to get one."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None or importlib.util.find_spec("playwright") is None:
        pytest.skip(HOW)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu"]
        chromium = started.chromium.launch(executable_path=browser, args=arguments)
        yield chromium
        chromium.close()


class Browser:
    """A page that notes whatever it asks the network for and whatever goes wrong in it."""

    def __init__(self, chromium: Any, url: str, **options: Any):
        self.page = chromium.new_page(**options)
        self.url = url
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self, place: str = "") -> Any:
        """Loads the page, anew if only the place in it differs, and waits until it is drawn."""
        self.page.goto("about:blank")
        self.page.goto(self.url + place)
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def close(self) -> None:
        """Fails if the page asked another address than its own, or something went wrong in it."""
        self.page.close()
        foreign = [url for url in self.requests if not url.startswith(self.url)]
        assert foreign == []
        assert self.problems == []


def serious_findings(page: Any) -> list[str]:
    """What axe-core calls serious or critical on the page as it is now shown."""
    if importlib.util.find_spec("axe_playwright_python") is None:
        pytest.skip(HOW)
    script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(script)  # by the debugger: the page's own policy does not hold for it
    findings = page.evaluate("axe.run().then((result) => result.violations)")
    return [
        f"{finding['id']} ({finding['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for finding in findings
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]
