"""Real games (through STEPAGENT_DATA), the reference engine, and a few generated games."""

import os
from pathlib import Path

import pytest

from stepagent.envs.alfworld import engine, generate


@pytest.fixture(scope="session")
def real_data():
    """The folder `alfworld` of the benchmark files."""
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no real ALFWorld games to read")
    return Path(folder) / "alfworld"


@pytest.fixture(scope="session")
def real_games(real_data):
    """All unpacked real game files, sorted."""
    return sorted((real_data / "json_2.1.1").glob("*/*/*/game.tw-pddl"))


@pytest.fixture(scope="session")
def reference():
    pytest.importorskip("textworld", reason="the reference engine is not here: `make textworld`")
    pytest.importorskip("fast_downward", reason="the planner is not here: `make textworld`")
    from stepagent.envs.alfworld import reference

    return reference


@pytest.fixture(scope="session")
def make_game():
    """Generated game by id, read."""

    def make(task_id):
        return engine.load(generate.make(task_id))

    return make
