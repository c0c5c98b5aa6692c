"""The report: what it is made of, and how it behaves in a browser, from disk, with hostile text."""

import base64
import gzip
import hashlib
import html
import json
import math
import re
from dataclasses import replace

import pytest

from stepagent.envs.trajectory import Step, Trajectory, write
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.view import main
from stepagent.eval.view.data import outcome
from stepagent.eval.view.experts import Experts, divergence
from tests.browser import Browser, serious_findings
from tests.eval.example_results import episode, write_run
from tests.toy_env import ID, ScriptedAgent

TASKS = [*(f"boil/{i}" for i in range(1, 13)), *(f"melt/{i}" for i in range(1, 9))]
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<b id=injected>bold</b> @@DATA@@ ${1} \u202eright-to-left \ud800 & \x00\x1b[31m <!-- ]]>"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An agent, an expert, a training run; the agent diverges from the expert at step 2."""
    root = tmp_path_factory.mktemp("runs")
    agent = write_run(root / "agent", {t: float(i % 2) for i, t in enumerate(TASKS)}, "agent")
    expert = write_run(root / "expert", dict.fromkeys(TASKS, 1.0), "expert")
    training = root / "training"
    rows = [
        {"stage": stage, "update": n, "loss": 1 / n, "accuracy": 0.5}
        for stage in ("sft", "iteration-1")
        for n in range(1, 501)
    ]
    training.mkdir()
    lines = [json.dumps(r) for r in rows]
    (training / "metrics.jsonl").write_text("\n".join([*lines, '{"cut', '{"stage": 1}', ""]))
    for stage in ("iteration-1", "sft"):
        write_run(training / "eval" / stage, dict.fromkeys(TASKS, 0.5), stage)
    return agent, expert, str(training)


def report(tmp_path, *arguments):
    out = tmp_path / "report.html"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


def unpacked(page, name="index"):
    block = re.search(rf'id="{name}">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(block.group(1))))


# What it is made of -------------------------------------------------------------------------------


def test_the_index(folders, tmp_path):
    page = report(tmp_path, *folders).read_text()
    index = unpacked(page)
    assert [r["name"] for r in index["runs"]] == ["agent", "expert", "sft", "iteration-1"]
    agent = index["runs"][0]
    assert agent["summary"]["reward_mean"] == 0.5
    assert set(agent["summary"]["by_type"]) == {"boil", "melt"}
    assert len(agent["summary"]["by_type"]["boil"]["reward_ci95"]) == 2
    assert agent["outcomes"] == [10, 0, 10, 0, 0]
    assert agent["lengths"] == [[3, 0, 10], [3, 2, 10]]
    assert agent["divergences"] == [[2, 20]]
    assert agent["refusals"] == [["The end.", 20]]
    episodes = index["episodes"]
    assert len(episodes["task"]) == 80
    assert episodes["task"][:8:4] == ["boil/1", "boil/2"]
    assert episodes["task"][36] == "boil/10"  # counted, not spelled
    assert episodes["type"] == [task.split("/")[0] for task in episodes["task"]]
    for i, (of, expert, diverges) in enumerate(
        zip(episodes["run"], episodes["expert"], episodes["diverges"], strict=True)
    ):
        assert (of == 1) == (expert == -1), "all but the expert's own have it beside them"
        assert diverges == (0 if of == 1 else 2)
        assert expert == -1 or episodes["task"][expert] == episodes["task"][i]


def test_a_suite_is_one_page(tmp_path):
    for agent in ("expert", "random"):
        for env in ("WebShop", "ALFWorld"):
            rewards = dict.fromkeys(TASKS, float(agent == "expert"))
            where = tmp_path / "suite" / agent / env
            write_run(where, rewards, agent, env=f"stepagent/{env}-v0")
    index = unpacked(report(tmp_path, str(tmp_path / "suite")).read_text())
    names = ["expert/ALFWorld", "expert/WebShop", "random/ALFWorld", "random/WebShop"]
    assert [r["name"] for r in index["runs"]] == names
    assert len(index["episodes"]["task"]) == 4 * len(TASKS)
    for i, (of, expert) in enumerate(
        zip(index["episodes"]["run"], index["episodes"]["expert"], strict=True)
    ):
        assert (of < 2) == (expert == -1)
        assert expert == -1 or index["episodes"]["env"][expert] == index["episodes"]["env"][i]


def test_learning_curves(folders, tmp_path, capsys):
    index = unpacked(report(tmp_path, folders[2]).read_text())
    (curve,) = index["curves"]
    assert curve["stages"] == [{"name": s, "updates": 500} for s in ("sft", "iteration-1")]
    assert [f["name"] for f in curve["figures"]] == ["loss", "accuracy"]
    part = curve["figures"][0]["curves"][1]
    assert len(part["x"]) == len(part["y"]) == 167  # means of three
    assert part["y"][0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-5)
    assert [index["runs"][i]["name"] for i in curve["scored"]] == ["sft", "iteration-1"]
    assert "2 lines cannot be read (line 1001)" in " ".join(capsys.readouterr().err.split())


def test_chunks_of_texts_do_not_divide_tasks(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("stepagent.eval.view.data.CHUNK", 500)
    page = report(tmp_path, *folders[:2]).read_text()
    index = unpacked(page)
    starts, tasks = index["starts"], index["episodes"]["task"]
    assert len(starts) > 5
    assert all(tasks[start] != tasks[start - 1] for start in starts[1:])
    ends = [*starts[1:], len(tasks)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        assert len(unpacked(page, f"chunk-{number}")) == end - start
    first = unpacked(page, "chunk-0")[0]
    assert first["steps"][1] == ["A door.", "It may open.", "open door agent", 0, 1, ""]
    assert (first["steps"][2][4], first["final"]) == (0, "The end.")


def test_the_policy_allows_its_own_script_and_nothing_else(folders, tmp_path):
    page = report(tmp_path, *folders).read_text()
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', page).group(1))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, name in (("script", "script"), ("style", "style")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\b(src|href)=", page), "nothing is fetched"
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
    ):
        assert word not in page
    assert "://" not in page


def test_the_same_runs_give_the_same_file(folders, tmp_path):
    assert report(tmp_path, *folders).read_bytes() == report(tmp_path, *folders).read_bytes()


def test_experts_and_divergence():
    expert = episode("x/1", 1.0, "expert")
    experts = Experts([expert, replace(episode("x/2", 1.0), error="broke")])
    agent = episode("x/1", 0.0, "agent")
    assert experts.find(agent) is expert
    assert experts.find(expert) is None
    assert experts.find(episode("x/2", 0.0)) is None
    assert experts.find(replace(agent, env="other/World-v0")) is None
    assert experts.find(replace(agent, seed=7)) is expert  # the seed decided nothing
    other = (replace(agent.steps[0], observation="Another hall."), *agent.steps[1:])
    assert experts.find(replace(agent, seed=7, steps=other)) is None
    assert divergence(agent, expert) == 2
    assert divergence(expert, replace(expert, agent="copy")) is None
    assert divergence(replace(expert, steps=expert.steps[:2]), expert) == 3
    shouted = tuple(replace(s, action=f"  {s.action.upper()} ") for s in expert.steps)
    assert divergence(replace(expert, steps=shouted), expert) is None


def test_replies_cut_at_their_limit_are_counted_and_noted(tmp_path):
    steps = (Step("o", "t", "a", ending="length"), Step("o", "t", "b"))
    write(tmp_path / "results.jsonl", [Trajectory("E", "x/1", "test", "A", 0, steps)])
    index = unpacked(report(tmp_path, str(tmp_path)).read_text())
    assert index["episodes"]["at_limit"] == [1]
    assert any("1 of 2 replies were cut" in note for note in index["notes"])


def test_outcomes():
    trajectories = [
        episode("x/1", 1.0),
        episode("x/1", 0.5),
        episode("x/1", 0.0),
        episode("x/1", 0.5, truncated=True),
        episode("x/1", 0.5, error="agent: no"),
    ]
    assert [outcome(t) for t in trajectories] == ["solved", "partly", "nothing", "cut", "failed"]


def test_the_expert_can_be_played(tmp_path):
    evaluate(ID, ScriptedAgent(), tmp_path / "a", EvaluationOptions(limit=3, env_args={"size": 5}))
    index = unpacked(report(tmp_path, str(tmp_path / "a"), "--expert", "play").read_text())
    episodes = index["episodes"]
    assert sorted(episodes["run"]) == [-1, -1, -1, 0, 0, 0]
    assert all(
        (e >= 0) == (r == 0) for e, r in zip(episodes["expert"], episodes["run"], strict=True)
    )


def test_another_run_can_be_the_expert(folders, tmp_path):
    index = unpacked(report(tmp_path, folders[0], "--expert", folders[1]).read_text())
    assert len(index["runs"]) == 1
    assert index["runs"][0]["divergences"] == [[2, 20]]


def test_bad_input(folders, tmp_path, capsys):
    lines = open(f"{folders[0]}/results.jsonl").read().splitlines()
    future = lines[1].replace('"version":1', '"version":2')
    text = "\n".join([*lines[:6], future, lines[0], lines[7][:40]])
    (tmp_path / "r.jsonl").write_text(text)
    index = unpacked(report(tmp_path, str(tmp_path / "r.jsonl")).read_text())
    assert len(index["episodes"]["task"]) == 6
    notes = " ".join(index["notes"])
    assert "r.jsonl:7: schema version 2" in notes
    assert "r.jsonl:9: not JSON" in notes
    assert "are recorded more than once" in notes
    capsys.readouterr()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "does not exist" in " ".join(capsys.readouterr().err.split())
    assert main([folders[0], "--out", f"{folders[0]}/results.jsonl/x.html"]) == 1
    assert "cannot write" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main([folders[0], "--expret", "x"])


# In a browser -------------------------------------------------------------------------------------


def searched(page, words):
    page.fill("#search", words)
    page.wait_for_selector("#count:not([aria-busy])")
    return page.inner_text("#count")


def test_reading_a_report(chromium, folders, tmp_path):
    browser = Browser(chromium, report(tmp_path, *folders).as_uri())
    page = browser.open()
    assert page.inner_text("#subtitle") == "4 runs, 80 episodes"
    assert "0.500  [0.300, 0.700]" in page.inner_text("#overview")
    page.click("text=melt >> nth=0")  # a task type opens its episodes
    assert page.inner_text("#count") == "32 of 80 episodes"
    page.select_option("#by-run", label="agent")
    page.select_option("#by-outcome", label="solved")
    assert page.inner_text("#count") == "4 of 80 episodes"
    page.click(".item >> nth=0")
    assert page.inner_text("#episode h2") == "melt/2"
    steps = page.locator(".step")
    assert steps.count() == 4
    assert page.locator(".step.first").get_attribute("id") == "step-2"
    second = page.locator("#step-2").inner_text()
    assert "first divergence" in second
    assert second.index("open door agent") < second.index("open door expert")
    assert "Same as the agent's." in page.inner_text("#step-1")
    third = page.locator("#step-3 .turn").first
    assert "+1" in third.inner_text()
    assert "invalid" in third.inner_text()
    page.click("#episode .others button:has-text('sft')")
    page.wait_for_selector("#episode .chips:has-text('0.500') >> nth=0")
    page.go_back()
    page.wait_for_selector("#episode .chips:has-text('1.000')")
    page.click("#tab-curves")
    assert page.locator("#curves svg").count() == 3
    browser.close()


def test_search_looks_into_texts(chromium, tmp_path):
    results = [episode(f"x/{i}", 0.0) for i in range(50)]
    needle = replace(results[33].steps[1], thought="Perhaps the Purple key?")
    steps = (results[33].steps[0], needle, results[33].steps[2])
    results[33] = replace(results[33], steps=steps)
    write(tmp_path / "r.jsonl", results)
    browser = Browser(chromium, report(tmp_path, str(tmp_path / "r.jsonl")).as_uri())
    page = browser.open("#episodes")
    assert searched(page, "purple KEY") == "1 of 50 episodes"
    assert "x/33" in page.inner_text(".item")
    assert searched(page, "x/4") == "11 of 50 episodes"
    assert searched(page, "nowhere") == "0 of 50 episodes"
    assert searched(page, "") == "50 episodes"
    browser.close()


def test_keys(chromium, folders, tmp_path):
    browser = Browser(chromium, report(tmp_path, *folders[:2]).as_uri())
    page = browser.open()
    page.keyboard.press("3")
    for key in "jj":
        page.keyboard.press(key)
    page.wait_for_selector("#episode h2:has-text('boil/1')")
    assert "expert" in page.inner_text(".item.current")
    page.keyboard.press("k")
    page.wait_for_selector("#step-2.two")
    for key, step in (("n", 1), ("n", 2), ("p", 1), ("d", 2)):
        page.keyboard.press(key)
        assert page.locator(".step.at").get_attribute("id") == f"step-{step}"
    page.keyboard.press("e")
    page.wait_for_selector("#step-2:not(.two)")
    page.keyboard.press("/")
    page.wait_for_selector("#search:focus")
    page.keyboard.type("melt")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys", state="hidden")
    page.keyboard.press("Escape")
    page.wait_for_selector("#episode:has-text('Choose an episode')")
    page.wait_for_selector("#count:has-text('16 of 40')")
    browser.close()


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_dark_and_narrow(chromium, folders, tmp_path):
    file = report(tmp_path, *folders).as_uri()
    light, dark = (Browser(chromium, file, color_scheme=scheme) for scheme in ("light", "dark"))
    before = ground(light.open())
    assert ground(dark.open()) != before
    light.page.keyboard.press("t")
    assert ground(light.page) == ground(dark.page)
    # the choice is kept, in two halves: Chromium may lose what a page stored just before a reload
    kept = light.page.evaluate("localStorage.getItem('stepagent-theme')")
    light.page.add_init_script(f"localStorage.setItem('stepagent-theme', '{kept}')")
    light.page.reload()
    light.page.wait_for_selector("body[data-ready]")
    assert ground(light.page) == ground(dark.page)
    light.close()
    dark.close()
    phone = Browser(chromium, file, viewport={"width": 360, "height": 700})
    for place in ("#overview", "#curves", "#episodes", "#episodes/0"):
        page = phone.open(place)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.is_visible("#episode")
    assert not page.is_visible("#list")
    page.click(".back")
    page.wait_for_selector("#list", state="visible")
    phone.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(chromium, folders, tmp_path, scheme):
    browser = Browser(chromium, report(tmp_path, *folders).as_uri(), color_scheme=scheme)
    for place in ("#overview", "#curves", "#episodes", "#episodes/0"):
        page = browser.open(place)
        if "/" in place:
            page.wait_for_selector("#step-1")
        assert serious_findings(page) == []
    browser.close()


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className")


def test_everything_can_be_reached_with_the_keyboard(chromium, folders, tmp_path):
    """With Tab and Enter alone: from the overview to a task type's episodes and their filters."""
    browser = Browser(chromium, report(tmp_path, *folders).as_uri())
    page = browser.open()
    reached = []
    while len(reached) < 60 and reached[-1:] != ["name"]:
        page.keyboard.press("Tab")
        reached.append(focused(page))
    assert {"tab-overview", "tab-curves", "tab-episodes", "theme", "help"} <= set(reached)
    page.focus("#tab-episodes")
    page.keyboard.press("Enter")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(focused(page))
    filters = {"search", "by-run", "by-type", "by-outcome", "sort", "only-invalid", "list"}
    assert filters <= set(reached)
    page.keyboard.press("j")
    page.wait_for_selector("#step-1")
    browser.close()


def test_hostile_text_is_text(chromium, tmp_path):
    steps = (Step(HOSTILE, HOSTILE, HOSTILE, 0.0, False, HOSTILE), Step(HOSTILE, "", "", 0.0))
    results = [
        episode(
            f"<b>x</b></title><script>window.hacked = 3</script>{i}/1",
            0.0,
            HOSTILE,
            steps=steps,
            final_observation=HOSTILE,
            error=HOSTILE if i else "",
            metrics={HOSTILE: 1.0},
            fingerprint={HOSTILE: HOSTILE, "arguments": "{}"},
            env=f"x/{HOSTILE}",
        )
        for i in range(2)
    ]
    (tmp_path / "r.jsonl").write_text(
        "".join(json.dumps(json.loads(r.to_json())) + "\n" for r in results), encoding="ascii"
    )
    browser = Browser(
        chromium, report(tmp_path, str(tmp_path / "r.jsonl"), "--title", HOSTILE).as_uri()
    )
    for place in ("#overview", "#episodes/0", "#episodes/1"):
        page = browser.open(place)
        if "/" in place:
            page.wait_for_selector("#step-1")
        for details in page.locator("details:visible > summary").all():
            details.click()
        assert page.evaluate("window.hacked") is None
        assert page.locator("#injected, img").count() == 0
        assert page.locator("script").count() == 3  # the index, one chunk, the page's own
        assert "<img src=x onerror=" in page.inner_text("main")
    assert page.title().startswith("</script><script>window")
    assert "<b id=injected>bold</b>" in page.inner_text("#step-1 .observation pre")
    page.evaluate("location.hash = '#episodes/<img src=x onerror=alert(1)>'")
    page.wait_for_selector("#episode:has-text('Choose an episode')")
    browser.close()


def test_five_thousand_episodes(chromium, tmp_path):
    """Opened quickly, with as many rows in the page as can be seen."""
    steps = tuple(Step(f"Room {i}. " + "It is dark here. " * 40, "", f"go {i}") for i in range(8))
    results = [episode(f"t{i % 7}/{i}", 0.5, steps=steps) for i in range(5000)]
    write(tmp_path / "r.jsonl", results)
    file = report(tmp_path, str(tmp_path / "r.jsonl"))
    assert file.stat().st_size < 3e6
    browser = Browser(chromium, file.as_uri())
    times = []  # in milliseconds, since it was opened; the quickest is least of other processes
    while len(times) < 5 and min(times, default=math.inf) >= 2000:
        page = browser.open("#episodes")
        times.append(page.evaluate("performance.now()"))
    print(f"5,000 episodes: opened in {min(times) / 1000:.2f} s")
    assert min(times) < 2000
    assert page.inner_text("#count") == "5,000 episodes"
    assert page.locator(".item").count() < 60
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.wait_for_selector(".item:has-text('t6/4997')")
    assert page.locator(".item").count() < 60
    assert searched(page, "room 7.") == "5,000 episodes"
    browser.close()


def test_without_scripts_it_says_so(chromium, folders, tmp_path):
    page = chromium.new_page(java_script_enabled=False)
    page.goto(report(tmp_path, folders[0]).as_uri())
    assert "needs JavaScript" in page.inner_text("main")
    page.close()
