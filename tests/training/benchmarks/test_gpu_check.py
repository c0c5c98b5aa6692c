"""The GPU check on a CPU: the same code on tiny models."""

import json

from stepagent.training.benchmarks import gpu_check


def test_the_script_writes_every_section_and_does_none_twice(tmp_path, monkeypatch):
    out = tmp_path / "check.json"
    assert gpu_check.main(["--out", str(out), "--device", "cpu"]) == 0
    report = json.loads(out.read_text())
    works = ["practice", "reflection", "inverse"]
    sections = [f"{work}, {shape}" for shape in ("tiny", "tiny-lora") for work in works]
    assert list(report) == ["machine", "parity", *sections]
    assert [row["way"] for row in report["parity"]] == ["blocks", "flex", "blocks", "flex"]
    assert all(row["passed"] and row["log_probs"] > 0 for row in report["parity"])
    assert all(report[name]["ratio"] > 0 for name in sections)
    assert report["reflection, tiny"]["tokens_s"] > 0
    del report["practice, tiny"]
    out.write_text(json.dumps(report))
    again = []
    monkeypatch.setattr(
        gpu_check, "_alone", lambda work, *rest: again.append(work) or {"ratio": 1.0}
    )
    assert gpu_check.main(["--out", str(out), "--device", "cpu"]) == 0
    assert again == [gpu_check._practice]


def test_a_trajectory_is_as_long_as_its_shape_says():
    shape = gpu_check.SHAPES["cuda"]["llama-3-8b"]
    tree = gpu_check.trajectory(shape)
    assert (len(tree.ids), len(tree.replies), len(tree.branches)) == (4000, 40, 80)
