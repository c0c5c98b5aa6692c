import re
import subprocess
import sys
import threading

import pytest
import requests

from stepagent.envs import trajectory
from stepagent.envs.webshop import site as sites
from tests.browser import serious_findings
from tests.servers import FOREIGN_PAGES


@pytest.fixture
def site(tmp_path):
    server = sites.Site(sites.Config(port=0, split="test", out=tmp_path / "people.jsonl"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def _start(site, **form):
    answer = requests.post(site.url + "start", data=form, timeout=30)
    (visitor,) = list(site.visits.values())[-1:] or (None,)
    return answer, visitor


def test_a_visit_by_hand_is_recorded(site):
    answer, visitor = _start(site)
    assert answer.status_code == 200
    assert visitor.info["instruction"] in answer.text
    for thought, action in visitor.env.expert_plan():
        form = {"action": action, "thought": thought}
        if action.startswith("search"):
            form = {"words": action[7:-1], "thought": thought}
        answer = requests.post(answer.url, data=form, timeout=30)
    assert "Score <b id=score>1.00</b>" in answer.text
    assert requests.post(answer.url, data={"action": "click[buy now]"}, timeout=30).ok
    (recorded,) = trajectory.read(site.config.out)
    assert recorded.agent == "human"
    assert recorded.reward == 1.0
    assert recorded.steps[0].thought
    assert recorded.steps[-1].action == "click[buy now]"


def test_bad_requests(site):
    assert requests.get(site.url + "visit/none", timeout=30).status_code == 404
    assert (
        requests.post(site.url + "visit/none", data={"action": "x"}, timeout=30).status_code == 404
    )
    answer, _ = _start(site, task_id="no such task")
    assert answer.status_code == 400
    assert "no task" in answer.text
    large = {"thought": "x" * 100_000}
    assert requests.post(site.url + "start", data=large, timeout=30).status_code == 413
    answer, _ = _start(site)
    answer = requests.post(answer.url, data={"action": "<script>alert(1)</script>"}, timeout=30)
    assert "<script>" not in answer.text
    assert "is not possible here" in answer.text


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
def test_pages_of_other_sites_are_refused(site, headers):
    assert requests.get(site.url, headers=headers, timeout=30).status_code == 403
    answer = requests.post(site.url + "start", headers=headers, timeout=30)
    assert answer.status_code == 403
    assert not site.visits
    own = {"Origin": site.url.rstrip("/")}
    assert requests.post(site.url + "start", headers=own, timeout=30).ok


def test_visits_are_dropped_when_there_are_too_many(site, monkeypatch):
    monkeypatch.setattr(sites, "MAX_VISITS", 2)
    for _ in range(4):
        _start(site)
    assert len(site.visits) == 2


def test_the_command(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "envs.webshop.site", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group()
        assert "Shop for a task" in requests.get(address, timeout=30).text
    finally:
        process.terminate()
        process.wait(20)
    failed = subprocess.run(
        [sys.executable, "-m", "envs.webshop.site", "--env-args.data", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "holds no catalogue" in failed.stderr


def _load(page, act, *arguments):
    """Does what leads to the next page, and waits until that is loaded."""
    with page.expect_navigation():
        act(*arguments)


def test_in_a_browser(site, chromium):
    page = chromium.new_page()
    page.goto(site.url)
    _load(page, page.click, "#start")
    (visitor,) = site.visits.values()
    assert page.inner_text("#instruction") == visitor.info["instruction"]
    for thought, action in visitor.env.expert_plan():
        page.fill("textarea", thought)
        if action.startswith("search"):
            page.fill("#words", action[7:-1])
            _load(page, page.click, "#search")
            assert page.locator(".hit").count() == 10
        else:
            _load(page, page.locator(f'button[value="{action}" i]').first.click)
    assert page.inner_text("#score") == "1.00"
    assert page.inner_text("#steps").startswith("step ")
    page.close()
    assert len(trajectory.read(site.config.out)) == 1


def _focus(page, selector):
    """Presses Tab until the first element that the selector names has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_with_the_keyboard_alone(site, chromium):
    page = chromium.new_page()
    page.goto(site.url)
    _focus(page, "#start")
    _load(page, page.keyboard.press, "Enter")
    (visitor,) = site.visits.values()
    for _, action in visitor.env.expert_plan():
        if action.startswith("search"):
            _focus(page, "#words")
            page.keyboard.type(action[7:-1])
        else:
            _focus(page, f'button[value="{action}" i]')
        _load(page, page.keyboard.press, "Enter")
    assert page.inner_text("#score") == "1.00"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_dark_and_accessible(site, chromium, scheme):
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 360, "height": 700})

    def check():
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert serious_findings(page) == []

    page.goto(site.url)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 22, 28)") == (scheme == "dark")
    check()
    _load(page, page.click, "#start")
    check()
    visitor = next(reversed(site.visits.values()))
    for _, action in visitor.env.expert_plan():
        site.act(visitor, action, "")
        page.reload()
        check()
    assert page.inner_text("#score") == "1.00"
    page.close()
