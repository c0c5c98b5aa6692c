"""The page of `stepagent play --web`: its server, hostile requests, and how it behaves."""

import json
import threading
from contextlib import contextmanager

import pytest
import requests

from stepagent import envs
from stepagent.agents.core import Agent
from stepagent.envs import trajectory as files
from stepagent.eval import replay, rollout, view
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.load_runs import load_runs
from stepagent.eval.play import episodes as played
from stepagent.eval.play import recorded as recorded_files
from stepagent.eval.play import server as servers
from stepagent.eval.play.command import Config, main, serve
from stepagent.eval.play.recorded import Recorded
from tests.browser import Browser, serious_findings
from tests.eval.example_results import episode, write_run
from tests.eval.test_view import HOSTILE
from tests.servers import FOREIGN_PAGES
from tests.toy_env import ID, ScriptedAgent, ToyEnv

TASK = "odd/25"
LIMIT = 3.0
"""Seconds for a call in tests of one that hangs; the others must keep it on a busy machine, too."""


@contextmanager
def serving(**options):
    server = serve(Config(**{"env": ID, "split": "train", "port": 0, "results": [], **options}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def server(tmp_path):
    with serving(out=tmp_path / "played.jsonl", results=[str(tmp_path)]) as started:
        yield started


def ask(server, path, body=None, **headers):
    url = f"{server.url}api/{path}"
    if body is None:
        return requests.get(url, headers=headers, timeout=120)
    return requests.post(url, json=body, headers=headers, timeout=120)


def start(server, **fields):
    choice = {"env": ID, "split": "train", "task": TASK, "seed": 0, **fields}
    answer = ask(server, "episodes", choice)
    assert answer.status_code == 200, answer.text
    return answer.json()


def step(server, name, **fields):
    return ask(server, f"episodes/{name}/steps", fields)


# What it answers ----------------------------------------------------------------------------------


def test_what_it_offers(server):
    suite = ask(server, "suite").json()
    assert suite["envs"] == [ID, *sorted(envs.ENTRY_POINTS)]
    assert suite["agents"] == ["expert", "random"]
    assert suite["saves"].endswith("played.jsonl")
    tasks = ask(server, "tasks?env=" + ID + "&split=train&search=odd 1").json()
    assert tasks["tasks"] == ["odd/11", "odd/13", "odd/15", "odd/17", "odd/19", "odd/21"]
    assert (tasks["fitting"], tasks["total"]) == (6, 20)


def test_a_person_plays_and_saves(server, tmp_path):
    state = start(server)
    name = state["name"]
    assert state["instruction"] == "Reach 25."
    assert state["final"].startswith("Reach 25. The number is ")
    assert ask(server, f"episodes/{name}/actions").json()["actions"] == ["add 1", "add 2", "add 3"]
    step(server, name, action="jump")
    after = step(server, name, action="add 1", thought="A little.", since=1).json()
    assert [s[1:5] for s in after["steps"]] == [["A little.", "add 1", after["score"], 1]]
    left = after["left"]
    while not (state := ask(server, f"episodes/{name}").json())["over"]:
        hint = ask(server, f"episodes/{name}/expert").json()
        state = step(server, name, action=hint["action"], thought=hint["thought"]).json()
    assert left == 10
    assert (state["score"], state["outcome"], state["left"]) == (1.0, "solved", 0)
    assert set(state["players"]) == {"human"}
    assert ask(server, f"episodes/{name}/expert").json() == {"action": None}
    assert step(server, name, action="add 1").status_code == 409
    for _ in range(2):  # the second time it is there already
        assert ask(server, f"episodes/{name}/save", {}).json()["saved"]
    (saved,) = files.read(tmp_path / "played.jsonl")
    downloaded = ask(server, f"episodes/{name}/trajectory")
    assert "attachment" in downloaded.headers["Content-Disposition"]
    line = files.Trajectory.from_json(downloaded.text)
    assert (line.agent, line.steps, line.reward) == ("human", saved.steps, 1.0)
    assert [(s.action, s.valid) for s in saved.steps[:2]] == [("jump", False), ("add 1", True)]
    assert saved.error == ""
    assert "data" in saved.fingerprint


def test_what_is_saved_can_be_viewed_and_replayed(server, tmp_path):
    name = start(server, seed=3)["name"]
    step(server, name, action="Thought: Both at once.\nAction: add 2")
    step(server, name, player="random")
    step(server, name, player="expert")
    ask(server, f"episodes/{name}/save", {})
    file = tmp_path / "played.jsonl"
    (saved,) = files.read(file)
    assert saved.agent == "human+random+expert"
    assert saved.steps[0].thought == "Both at once."
    assert saved.error == played.UNFINISHED
    (run,) = load_runs([file], [])
    outcome = replay.replay_run(run, replay.Config())
    assert (outcome.episodes, outcome.differences) == (1, [])
    assert view.main([str(file), "--out", str(tmp_path / "report.html")]) == 0


def test_an_agent_plays_as_in_an_evaluation(server, tmp_path):
    """The same replies, fingerprint and outcome as `stepagent eval` records."""
    evaluate(
        ID,
        played.make_agent("random"),
        tmp_path / "r",
        EvaluationOptions(task_ids=[TASK], split="train", seed=4),
    )
    (expected,) = files.read(tmp_path / "r" / "results.jsonl")
    name = start(server, seed=4)["name"]
    while not step(server, name, player="random").json()["over"]:
        pass
    line = ask(server, f"episodes/{name}/trajectory").text
    got = files.Trajectory.from_json(line)
    assert got.steps == expected.steps
    assert got.fingerprint == expected.fingerprint
    assert (got.agent, got.task_type, got.metrics) == ("random", "odd", expected.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", envs.ENTRY_POINTS)
def test_every_environment_can_be_played(env_id):
    with serving(env="") as server:
        state = start(server, env=env_id, split="dev", task="")
        name = state["name"]
        assert isinstance(ask(server, f"episodes/{name}/actions").json()["actions"], list)
        for _ in range(100):
            if (state := step(server, name, player="expert").json())["over"]:
                break
        assert (state["score"], state["outcome"]) == (1.0, "solved")


def test_the_expert_is_asked_wherever_the_episode_is(server):
    name = start(server)["name"]
    step(server, name, action="add 1")
    while not (state := step(server, name, player="expert").json())["over"]:
        pass
    assert (state["outcome"], state["players"][:2]) == ("solved", ["human", "expert"])


def test_an_expert_that_plans_from_the_reset_only(monkeypatch):
    monkeypatch.setattr(ToyEnv, "expert_anywhere", False)
    with serving() as server:
        name = start(server)["name"]
        hint = ask(server, f"episodes/{name}/expert").json()
        assert step(server, name, action=hint["action"]).ok
        assert ask(server, f"episodes/{name}/expert").ok
        step(server, name, action="jump")
        answer = ask(server, f"episodes/{name}/expert")
        assert answer.status_code == 409
        assert "from the start" in answer.json()["error"]


def test_environments_and_agents_that_fail(monkeypatch):
    class Broken(Agent):
        name = "broken"

        def act(self, turns):
            raise RuntimeError("no model")

    make = played.make_agent
    monkeypatch.setattr(
        played, "make_agent", lambda spec, **o: Broken() if spec == "random" else make(spec, **o)
    )
    with serving(env_args={"broken": f"{TASK}!"}) as server:
        name = start(server)["name"]
        answer = step(server, name, player="random")
        assert answer.status_code == 409
        assert answer.json()["error"] == "agent: RuntimeError: no model"
        answer = step(server, name, action="add 1")
        assert answer.json()["error"] == "environment: RuntimeError: planted at step (step 1)"
        state = ask(server, f"episodes/{name}").json()
        assert (state["over"], state["outcome"]) == (True, "failed")
        assert start(server, task="odd/11")["over"] is False
    with serving(env_args={"broken": TASK}) as server:
        answer = ask(server, "episodes", {"env": ID, "split": "train", "task": TASK, "seed": 0})
        assert answer.status_code == 500
        assert answer.json()["error"] == "RuntimeError: planted at reset"


def test_an_environment_that_hangs_ends_its_episode(monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(ToyEnv, "admissible_actions", lambda self: hang.wait(120))
    with serving(time_limit=LIMIT) as server:
        name = start(server)["name"]
        answer = ask(server, f"episodes/{name}/actions")
        assert (answer.status_code, "no reply within 3 s" in answer.text) == (409, True)
        assert ask(server, f"episodes/{name}").json()["outcome"] == "failed"
        hang.set()


def test_an_agent_that_hangs_is_given_up(monkeypatch):
    hang, make = threading.Event(), played.make_agent

    class Hanging(ScriptedAgent):
        def act(self, turns):
            hang.wait(120)
            return super().act(turns)

    monkeypatch.setattr(
        played, "make_agent", lambda spec, **o: Hanging() if spec == "random" else make(spec)
    )
    with serving(time_limit=LIMIT) as server:
        name = start(server)["name"]
        answer = step(server, name, player="random")
        assert (answer.status_code, "no reply within 3 s" in answer.text) == (409, True)
        assert step(server, name, action="add 1").ok
        hang.set()


def test_open_environments_are_limited_and_closed(server, monkeypatch):
    monkeypatch.setattr(servers, "MAX_EPISODES", 2)
    before = ToyEnv.opened - ToyEnv.closed
    names = [start(server)["name"] for _ in range(5)]
    assert step(server, names[0], action="add 1").status_code == 404
    assert "start it again" in step(server, names[0], action="add 1").json()["error"]
    assert step(server, names[-1], action="add 1").ok
    for _ in range(100):
        if ToyEnv.opened - ToyEnv.closed - before == 2:
            break
        threading.Event().wait(0.05)
    assert ToyEnv.opened - ToyEnv.closed - before == 2


# Evaluations --------------------------------------------------------------------------------------


def test_results_are_followed_while_they_grow(tmp_path):
    write_run(tmp_path / "a", {"x/1": 1.0, "x/2": 0.5})
    file = tmp_path / "a" / "results.jsonl"
    results, name = Recorded([tmp_path]), str(tmp_path / "a")
    assert [row["name"] for row in results.files()] == [name]
    first = results.follow(name, None)
    assert [(row["task"], row["score"]) for row in first["rows"]] == [("x/1", 1.0), ("x/2", 0.5)]
    line = episode("x/3", 0.0).to_json() + "\n"
    with file.open("a") as opened:
        opened.write(line[:50])
    assert results.follow(name, first["next"])["rows"] == []  # half a line
    with file.open("a") as opened:
        opened.write(line[50:] + "not JSON\n")
    second = results.follow(name, first["next"])
    assert ([row["task"] for row in second["rows"]], second["bad"]) == (["x/3"], 1)
    text = results.episode(name, second["rows"][0]["at"])
    assert [s[2] for s in text["steps"]] == ["look", "open door one", "go"]
    with pytest.raises(recorded_files.NoSuchResults):
        results.episode(name, 7)
    (tmp_path / "b").mkdir()
    for other in ("", str(tmp_path / "b"), f"{tmp_path}/b/../../..", f"{tmp_path}/b/../a", "/etc"):
        with pytest.raises(recorded_files.NoSuchResults):
            Recorded([tmp_path / "b", tmp_path / "none"]).follow(other, None)
    write_run(tmp_path / "a", {"x/9": 1.0})  # written anew
    again = results.follow(name, second["next"])
    assert (again["again"], [row["task"] for row in again["rows"]]) == (True, ["x/9"])


def test_a_large_file_is_read_from_its_end_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded_files, "_NEWEST", 4000)
    monkeypatch.setattr(recorded_files, "MAX_ROWS", 3)
    monkeypatch.setattr(recorded_files, "MAX_LINE", 2000)
    write_run(tmp_path, {f"x/{i}": 0.5 for i in range(40)})
    with (tmp_path / "results.jsonl").open("a") as opened:
        opened.write("x" * 5000 + "\n" + episode("x/40", 1.0).to_json() + "\n")
    results, rows, bad, after = Recorded([tmp_path]), [], 0, 0
    while True:
        part = results.follow(str(tmp_path), after)
        rows, bad, after = [*rows, *part["rows"]], bad + part["bad"], part["next"]
        if not part["more"]:
            break
    assert ([row["task"] for row in rows], bad) == ([f"x/{i}" for i in range(41)], 1)
    newest = results.follow(str(tmp_path), None)
    assert newest["earlier"]
    assert newest["rows"][-1]["task"] == "x/40"


def test_a_running_evaluation_shows_what_it_plays(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "SHOWN_EVERY", 0.0)
    results, looks = Recorded([tmp_path]), []

    class Watched(ScriptedAgent):
        def act(self, turns):
            looks.append(results.follow(str(tmp_path), None)["open"] if self.batches else [])
            if looks[-1]:
                row = looks[-1][0]
                looks[-1] = results.open_episode(str(tmp_path), row["task"], row["seed"])
            return super().act(turns)

    evaluate(ID, Watched(), tmp_path, EvaluationOptions(limit=6))
    shown = [look for look in looks if look]
    assert len(shown) > 3
    assert {look["outcome"] for look in shown} == {"failed"}  # of none the end is known
    assert {look["error"] for look in shown} == {rollout.UNFINISHED}
    assert any(look["steps"] for look in shown)
    assert not (tmp_path / "playing.jsonl").exists()
    assert results.follow(str(tmp_path), None)["open"] == []
    with pytest.raises(recorded_files.NoSuchResults):
        results.open_episode(str(tmp_path), "odd/7", 0)


# Hostile requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
def test_pages_of_other_sites_are_refused(server, headers):
    for answer in (
        requests.get(server.url, headers=headers, timeout=120),
        ask(server, "suite", **headers),
        ask(server, "episodes", {"env": ID, "split": "train"}, **headers),
    ):
        assert answer.status_code == 403
    assert not server.episodes


def test_a_form_of_another_page_changes_nothing(server):
    """Without an Origin, as old browsers send it: a form has no JSON type."""
    name = start(server)["name"]
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        url = f"{server.url}api/episodes/{name}/steps"
        answer = requests.post(
            url, '{"action": "add 1"}', headers={"Content-Type": kind}, timeout=30
        )
        assert answer.status_code == 400
    assert ask(server, f"episodes/{name}").json()["steps"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("nothing", None, 404),
        ("episodes/none", None, 404),
        ("episodes/none/steps", {}, 404),
        ("tasks?env=os:Evil-v0&split=test", None, 400),
        (f"tasks?env={ID}&split=all", None, 400),
        ("episodes", {"env": "os:Evil-v0", "split": "test"}, 400),
        ("episodes", {"env": ID, "split": "train", "task": "odd/8"}, 400),
        ("episodes", {"env": ID, "split": "train", "seed": -1}, 400),
        ("episodes", {"env": ID, "split": "train", "seed": "9" * 400}, 400),
        ("episodes", {"env": [ID], "split": "train"}, 400),
        ("episodes", ["a list"], 400),
        ("results/follow?name=/etc", None, 404),
        ("results/follow?name=../../..", None, 404),
        ("results/episode?name=x&at=-1", None, 400),
        ("results/episode?name=/etc/passwd&at=0", None, 404),
        ("episodes?" + "&".join(f"a{i}=1" for i in range(50)), None, 400),
    ],
)
def test_bad_requests(server, path, body, status):
    answer = ask(server, path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


def test_bad_bodies(server):
    name = start(server)["name"]
    url, kind = f"{server.url}api/episodes/{name}/steps", {"Content-Type": "application/json"}
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"{}" + b" " * servers.MAX_BODY):
        assert requests.post(url, body, headers=kind, timeout=120).status_code == 400
    for fields in ({"player": "hf:/etc"}, {"player": 3}, {"action": None}, {"since": "x"}):
        assert step(server, name, **fields).status_code == 400
    for action in (HOSTILE, "", "x" * 100_000, "Action: " * 999):
        answer = step(server, name, action=action)
        assert answer.status_code == 200
        assert not answer.json()["steps"][-1][4]


def test_wrong_options(capsys, tmp_path):
    for argv, message in (
        ([], "required: ENV"),
        (["stepagent/Nowhere-v0", "--web"], "ScienceWorld"),
        ([ID, "--web", "--task-id", "odd/8"], "no task 'odd/8'"),
        (["--web", "--env-args.size", "3"], "needs ENV"),
        (["--web", "--task-id", "x"], "needs ENV"),
        (["--web", "--agents", "[human]"], "the person is you"),
        (["--web", "--agents", "[nobody]"], "unknown agent 'nobody'"),
        (["--web", "--port", "70000"], "from 0 to 65535"),
    ):
        assert main(argv) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with serving() as server:
        assert main(["--web", "--port", str(server.server_address[1])]) == 1
    assert "in use" in capsys.readouterr().err


# In a browser -------------------------------------------------------------------------------------


def test_playing_in_a_browser(chromium, server, tmp_path):
    browser = Browser(chromium, server.url)
    page = browser.open()
    page.fill("#search", "odd 21")
    page.wait_for_selector("#task-count:has-text('1 of 20')")
    page.select_option("#tasks", "odd/21")
    page.click("#start")
    page.wait_for_selector("#now:has-text('Reach 21.')")
    page.fill("#thought", "Small steps.")
    page.fill("#action", "add 1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#taken .step:nth-child(1)")
    assert "Small steps." in page.inner_text("#taken .step:nth-child(1)")
    page.click("#show-actions")
    page.click("#panel button:has-text('add 3')")
    page.wait_for_selector("#taken .step:nth-child(2)")
    page.fill("#action", "2")
    assert page.locator("#panel button:visible").all_inner_texts() == ["add 2"]
    page.click("#show-expert")
    page.click("#panel button >> nth=0")
    page.wait_for_selector("#taken .step:nth-child(3)")
    page.click("#once")
    page.wait_for_selector("#taken .step:nth-child(4):has-text('expert')")
    page.click("#on")
    page.wait_for_selector("#now:has-text('solved')")
    assert page.inner_text("#score") == "1.000"
    assert not page.is_visible("#act")
    page.click("#save")
    page.wait_for_selector("#saved:has-text('saved in')")
    with page.expect_download() as download:
        page.click("#download")
    (saved,) = files.read(tmp_path / "played.jsonl")
    (downloaded,) = files.read(download.value.path())
    assert downloaded.steps == saved.steps
    assert saved.agent == "human+expert"
    browser.close()


def test_answers_that_come_late(chromium, server, tmp_path):
    """What is typed or chosen meanwhile stays; answers to older questions change nothing."""
    write_run(tmp_path / "a", {"x/1": 0.25, "x/2": 0.5, "x/3": 1.0})
    held = []
    browser = Browser(chromium, server.url)
    page = browser.open()
    page.click("#start")
    page.click("#show-actions")
    page.wait_for_selector("#panel button:has-text('add 3')")

    def hold(pattern):
        held.clear()
        page.route(pattern, lambda route: held.append(route))

    def let_go(pattern, count=1):
        """The answers come, the newest first."""
        while len(held) < count:
            page.wait_for_timeout(20)
        for route in reversed(held):
            with page.expect_response(pattern):
                route.continue_()
        page.unroute(pattern)

    hold("**/actions")
    page.fill("#action", "add 1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#taken .step:nth-child(1)")
    page.keyboard.type("add 2")
    let_go("**/actions")
    page.wait_for_selector("#action-count:has-text('1 of 3')")
    assert page.input_value("#action") == "add 2"
    hold("**/expert")
    page.click("#show-expert")
    assert page.locator("#panel button").count() == 0  # no action that is none of the expert's
    let_go("**/expert")
    page.wait_for_selector("#panel:has-text('are left.')")
    hold("**/steps")
    page.focus("#action")
    page.keyboard.press("Enter")
    page.fill("#action", "add 3")
    let_go("**/steps")
    page.wait_for_selector("#taken .step:nth-child(2)")
    assert page.input_value("#action") == "add 3"

    hold("**/results/episode?*")
    page.click("#tab-watch")
    page.wait_for_selector("#rows button")  # and the newest is about to be shown
    page.click("#rows button:has-text('x/1')")
    let_go("**/results/episode?*", 2)
    page.wait_for_selector("#recorded h2:has-text('x/1')")
    browser.close()


def test_with_the_keyboard_alone(chromium, server):
    browser = Browser(chromium, server.url)
    page = browser.open()
    page.wait_for_selector("#task-count:has-text('20 tasks')")

    def focus(name):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == name:
                return
        raise AssertionError(f"Tab does not reach {name}")

    for name in ("tab-play", "tab-watch", "theme", "help", "env", "split", "seed", "search"):
        focus(name)
    focus("tasks")
    page.keyboard.press("End")
    focus("start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#action:focus")
    page.keyboard.type("add 1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#taken .step:nth-child(1)")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.wait_for_selector("#panel button:has-text('add 3')")
    page.keyboard.press("e")
    page.wait_for_selector("#panel:has-text('are left.')")
    page.keyboard.press("s")
    page.wait_for_selector("#taken .step:nth-child(2)")
    page.keyboard.press("/")
    page.wait_for_selector("#action:focus")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("#keys", state="visible")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_selector("#watch", state="visible")
    browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_dark_and_accessible(chromium, server, tmp_path, scheme):
    write_run(tmp_path / "a", {f"x/{i}": i / 4 for i in range(5)})
    size = {"width": 360, "height": 700}
    browser = Browser(chromium, server.url, color_scheme=scheme, viewport=size)
    page = browser.open()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 22, 28)") == (scheme == "dark")

    def check():
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert serious_findings(page) == []

    page.wait_for_selector("#task-count:has-text('20 tasks')")
    check()
    page.click("#start")
    page.fill("#action", "x" * 300)
    page.keyboard.press("Enter")
    page.wait_for_selector("#taken .step")
    page.click("#show-actions")
    page.wait_for_selector("#panel button")
    check()
    page.click("#tab-watch")
    page.wait_for_selector("#rows button")
    page.click("#rows button >> nth=2")
    page.wait_for_selector("#recorded .step")
    page.click("#all")
    check()
    browser.close()


def test_watching_results_grow(chromium, server, tmp_path):
    write_run(tmp_path / "a", {"x/1": 1.0})
    browser = Browser(chromium, server.url)
    page = browser.open("#watch")
    page.wait_for_selector("#recorded h2:has-text('x/1')")
    page.wait_for_selector("#recorded .step:nth-child(4)")  # played by itself
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write(episode("x/2", 0.5).to_json() + "\n")
    page.wait_for_selector("#recorded h2:has-text('x/2')")
    playing = tmp_path / "a" / "playing.jsonl"
    unfinished = episode("x/3", 0.0, error=rollout.UNFINISHED)
    files.write(playing, [unfinished])
    page.wait_for_selector("#rows button:has-text('live')")
    page.wait_for_selector("#recorded .chip:has-text('being played')")
    playing.unlink()
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write(episode("x/3", 1.0).to_json() + "\n")
    page.wait_for_selector("#recorded .chips:has-text('1.000')")
    page.click("#all")
    assert "The end." in page.inner_text("#recorded .now")
    page.click("#back")
    assert page.locator("#recorded .step").count() == 3
    assert page.locator("#rows button").count() == 3
    browser.close()


def test_hostile_text_is_text(chromium, server, tmp_path):
    hostile = episode(HOSTILE, 0.0, HOSTILE, final_observation=HOSTILE, error=HOSTILE)
    line = json.dumps(json.loads(hostile.to_json())) + "\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.jsonl").write_text(line, encoding="ascii")
    browser = Browser(chromium, server.url)
    page = browser.open()
    page.wait_for_selector("#task-count:has-text('20 tasks')")
    page.click("#start")
    page.fill("#action", "<img src=x onerror='window.hacked = 1'><b id=injected>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#taken .step")
    page.click("#tab-watch")
    page.wait_for_selector("#recorded h2:has-text('<script>')")
    page.click("#all")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#injected, img").count() == 0
    assert page.locator("script").count() == 1
    browser.close()


def test_a_server_that_ended_is_reported(chromium, tmp_path):
    with serving() as server:
        page = chromium.new_page()
        page.goto(server.url)
        page.wait_for_selector("#task-count:has-text('20 tasks')")
        page.click("#start")
        page.wait_for_selector("#now .step")
    page.click("#once")
    page.wait_for_selector("#problem:has-text('does not answer')")
    page.close()
