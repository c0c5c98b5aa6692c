"""Benchmarks of servers, the soak and vector modes, small: what they count, not how fast it is."""

import pytest

from stepagent.eval.benches import Options, server, soak, vector

GUESS = "tests.envs.guess:tests/Guess-v0"


def test_rows_of_every_number_of_sessions(monkeypatch):
    args = {"env": GUESS, "sessions": [1, 3], "steps": 4}
    rows = server.bench(Options("server", repeats=1, args=args))
    assert len(rows) == 2 * 9
    assert [row.name for row in rows if "batched" in row.name and "steps" in row.name] == [
        "Guess, 1 session: steps, batched",
        "Guess, 3 sessions: steps, batched",
    ]
    assert all(row.ours > 0 for row in rows)
    assert {row.baseline for row in rows if "overhead" in row.name} == {2.0}
    with pytest.raises(ValueError, match="episodes"):
        server.bench(Options("server", args={"episodes": 1}))


def test_a_short_soak_leaves_nothing():
    # two idle seconds: a busy machine may keep a client that lives waiting for one
    args = {"env": GUESS, "minutes": 0.05, "sessions": 6, "pause": 0.05, "idle": 2.0}
    rows = {row.name: row for row in soak.bench(Options("soak", args=args))}
    sessions = rows["sessions left (baseline: opened)"]
    assert sessions.ours == 0
    assert sessions.baseline > 6
    assert rows["clients that vanished (baseline: opened)"].ours > 0
    assert rows["failed steps (baseline: steps)"].ours == 0
    assert rows["threads"].ours <= rows["threads"].baseline + 1
    assert rows["file handles"].ours <= rows["file handles"].baseline + 1


def test_every_vector_mode_has_a_row():
    args = {"num_envs": 2, "tasks": 1}
    rows = list(vector.bench(Options("vector", repeats=1, args=args)))
    modes = ["sync", "async", "entry point", "server"]
    assert [row.name.split(", ")[1] for row in rows] == modes
    assert all(row.ours > 0 and row.baseline == rows[0].baseline > 0 for row in rows)
