import json
import os
from pathlib import Path

import pytest

from tests.envs.mind2web.records import record


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def real_steps():
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no real steps of Mind2Web")
    return Path(folder) / "mind2web" / "steps_100.jsonl"


@pytest.fixture
def official(tmp_path):
    """A folder of files in the official layout, of bundled tasks: 6 train, 3 of each test set."""
    folder = tmp_path / "official"
    tasks = [record("shop/lumen-house/" + str(i)) for i in range(10)]
    tasks += [record("support/volt-depot/" + str(i)) for i in range(6)]
    parts = {
        "data/train/train_0.json": tasks[:4],
        "data/train/train_1.json": tasks[4:6],
        "test_task/test_task_0.json": tasks[6:9],
        "test_website/test_website_0.json": tasks[9:12],
        "test_domain/test_domain_0.json": tasks[12:15],
    }
    for name, part in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(part))
    return folder


@pytest.fixture
def task_file(tmp_path):
    """Writes tasks of given actions as an official .json file; returns its path."""

    def write(*tasks, name="tasks.json"):
        records = [
            {
                "annotation_id": f"task{i}",
                "website": f"site{i}",
                "domain": "Test",
                "subdomain": "Test",
                "confirmed_task": f"Do number {i}",
                "action_reprs": [f"[link]  L{j} -> CLICK" for j in range(len(actions))],
                "actions": list(actions),
            }
            for i, actions in enumerate(tasks)
        ]
        path = tmp_path / name
        path.write_text(json.dumps(records))
        return path

    return write
