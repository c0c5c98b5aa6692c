"""Loading runs: folders of both commands, and every kind of damage."""

from dataclasses import replace

import pytest

from stepagent.eval import load_runs
from stepagent.eval.results import ResultsError
from tests.eval.example_results import FINGERPRINT, episode, write_run


def read(*paths):
    notes = []
    return load_runs.load_runs(paths, notes), notes


def test_files_and_folders(tmp_path):
    folder = write_run(tmp_path / "a", {"x/2": 1.0, "x/1": 0.0})
    for path in (folder, f"{folder}/results.jsonl"):
        (run,), notes = read(path)
        assert [t.task_id for t in run.trajectories] == ["x/1", "x/2"]
        assert (run.name, run.split, notes) == ("one", "test", [])


def test_a_training_run_gives_its_stages_in_order(tmp_path):
    for stage in ("iteration-10", "iteration-9", "sft", "random", "expert"):
        write_run(tmp_path / "seed1" / "eval" / stage, {"x/1": 0.0}, stage)
    runs, _ = read(tmp_path / "seed1")
    assert [r.name for r in runs] == ["random", "sft", "iteration-9", "iteration-10", "expert"]
    write_run(tmp_path / "seed2" / "eval" / "sft", {"x/1": 0.0}, "sft")
    runs, _ = read(tmp_path / "seed1", tmp_path / "seed2")
    assert [r.name for r in runs][1::4] == ["seed1/sft", "seed2/sft"]
    write_run(tmp_path / "seed2" / "sft-matched" / "eval" / "sft", {"x/1": 1.0}, "sft")
    runs, _ = read(tmp_path / "seed2")  # the control `evaluation.matched_sft` comes with them
    assert [r.name for r in runs] == ["sft", "sft-matched"]


def suite(folder, agents=("expert", "random"), entries=("A", "B")):
    for agent in agents:
        for entry in entries:
            env = f"stepagent/{entry}-v0"
            write_run(folder / agent / entry, {"x/1": 1.0, "x/2": 0.0}, agent, env=env)
    (folder / "summary.json").write_text('{"suite": "toys"}')
    return folder


def test_a_suite_gives_all_its_runs(tmp_path):
    folder = suite(tmp_path / "s")
    runs, notes = read(folder)
    names = [f"{agent}/{entry}" for agent in ("expert", "random") for entry in ("A", "B")]
    assert ([r.name for r in runs], notes) == (names, [])
    assert [r.name for r in read(folder / "random")[0]] == ["random (A)", "random (B)"]
    groups = load_runs.by_entry(runs)
    assert {entry: [r.name for r in group] for entry, group in groups.items()} == {
        "A": ["expert", "random"],
        "B": ["expert", "random"],
    }
    assert load_runs.is_suite(folder)
    assert not load_runs.is_suite(folder / "random")
    assert not load_runs.is_suite(folder / "nowhere")


def test_what_a_suite_has_just_started_is_not_a_run_yet(tmp_path):
    folder = suite(tmp_path / "s")
    just_started = folder / "random" / "B" / "results.jsonl"
    just_started.write_text("")
    assert [r.name for r in read(folder)[0]] == ["expert/A", "expert/B", "random"]
    for file in folder.rglob("results.jsonl"):
        file.write_text("")
    with pytest.raises(ResultsError, match=r"folder without results.*AGENT/ENVIRONMENT"):
        read(folder)


def test_a_training_run_without_an_evaluation_gives_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert read(tmp_path) == ([], [])


def test_everything_includes_the_experts_episodes_of_a_training_run(tmp_path):
    write_run(tmp_path / "eval" / "sft", {"x/1": 0.0}, "sft")
    write_run(tmp_path / "expert", {"x/1": 1.0}, "expert")
    assert [r.name for r in read(tmp_path)[0]] == ["sft"]
    runs = load_runs.load_runs([tmp_path], [], everything=True)
    assert [r.name for r in runs] == ["sft", "expert"]


def test_names_are_never_shared(tmp_path):
    a, b = (
        write_run(tmp_path / "a" / "r", {"x/1": 0.0}),
        write_run(tmp_path / "b" / "r", {"x/1": 0.0}),
    )
    runs, _ = read(a, b, write_run(tmp_path / "c", {"x/1": 0.0}, "two"))
    assert [r.name for r in runs] == ["one (a/r)", "one (b/r)", "two"]


def test_the_same_file_twice(tmp_path):
    folder = write_run(tmp_path / "a", {"x/1": 0.0})
    runs, notes = read(folder, f"{folder}/results.jsonl")
    assert len(runs) == 1
    assert "named twice" in notes[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "none does not exist"), ("empty", "is a folder without results")],
)
def test_nothing_there(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=message) as error:
        read(tmp_path / name)
    assert "results.jsonl" in str(error.value)


def test_good_lines_are_kept(tmp_path):
    lines = [episode(f"x/{i}", 1.0).to_json() for i in range(4)]
    future = lines[1].replace('"version":1', '"version":7')
    bad = [lines[0], future, lines[2], "[]", lines[3][:90]]
    (tmp_path / "r.jsonl").write_text("\n".join(bad))
    (run,), notes = read(tmp_path / "r.jsonl")
    assert [t.task_id for t in run.trajectories] == ["x/0", "x/2"]
    assert "r.jsonl:2: schema version 7" in notes[0]
    assert "r.jsonl:4: a JSON object was expected" in notes[1]
    assert "r.jsonl:5: not JSON" in notes[2]


def test_no_good_line_at_all(tmp_path):
    for text, why in (("", "it is empty"), ('{"version":9}\n' * 20, "schema version 9")):
        (tmp_path / "r.jsonl").write_text(text)
        with pytest.raises(ResultsError, match=why):
            read(tmp_path / "r.jsonl")


def test_duplicates(tmp_path):
    file = tmp_path / "r.jsonl"
    episodes = [
        episode("x/1", 0.0),
        episode("x/2", 0.5),
        episode("x/1", 1.0),
        replace(episode("x/1", 0.7), error="agent: gone"),
        replace(episode("x/2", 0.2), seed=1),
    ]
    file.write_text("".join(e.to_json() + "\n" for e in episodes))
    (run,), notes = read(file)
    counted = [(t.task_id, t.seed, t.reward) for t in run.trajectories]
    assert counted == [("x/1", 0, 1.0), ("x/2", 0, 0.5), ("x/2", 1, 0.2)]
    assert "'x/1' with seed 0: 3 times" in notes[0]


def test_mixed_results_are_several_runs(tmp_path):
    file = tmp_path / "r.jsonl"
    other = {**FINGERPRINT, "data": "d2"}
    episodes = [episode("x/1", 0.0), episode("x/1", 1.0, fingerprint=other), episode("x/2", 1.0)]
    file.write_text("".join(e.to_json() + "\n" for e in episodes))
    runs, notes = read(file)
    assert [(r.name, len(r.trajectories)) for r in runs] == [
        ("one (r.jsonl)", 2),
        ("one (r.jsonl) #2", 1),
    ]
    assert "fingerprint data: d1 → d2" in notes[0]


def test_what_differs(tmp_path):
    a = write_run(tmp_path / "a", {"x/1": 0.0}, "a")
    fine = write_run(tmp_path / "b", {"x/1": 0.0}, "b", fingerprint={**FINGERPRINT, "agent.x": "2"})
    assert load_runs.differences(read(a, fine)[0]) == []
    other = {**FINGERPRINT, "prompt": "p2", "new": "n"}
    bad = write_run(tmp_path / "c", {"x/1": 0.0}, "c", fingerprint=other, split="dev")
    assert load_runs.differences(read(a, fine, bad)[0]) == [
        "split: test (a, b) | dev (c)",
        "prompt: p1 (a, b) | p2 (c)",
        "new: (none) (a, b) | n (c)",
    ]
    by_chance = write_run(
        tmp_path / "r", {"x/1": 0.0}, "random", fingerprint={**FINGERPRINT, "prompt": "p2"}
    )
    assert load_runs.differences(read(a, by_chance)[0]) == []  # it reads no prompt
    several = {**FINGERPRINT, "prompt": "p3", "shots": "3"}
    shown = write_run(tmp_path / "s", {"x/1": 0.0}, "s", fingerprint=several)
    assert load_runs.differences(read(by_chance, shown)[0]) == []  # nor its shots
    assert [d.split(":")[0] for d in load_runs.differences(read(a, shown)[0])] == [
        "prompt",
        "shots",
    ]
    world = write_run(tmp_path / "d", {"x/1": 0.0}, "d", env="other/World-v0", fingerprint={})
    (difference,) = load_runs.differences(read(a, world)[0])
    assert difference == "environment: stepagent/WebShop-v0 (a) | other/World-v0 (d)"
