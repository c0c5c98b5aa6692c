"""OpenEnv's own tools and client against our server: `pytest -m integration -k openenv`."""

import json
import subprocess

import pytest
import yaml

from stepagent import envs
from tests.envs.serve.servers import Running
from tests.integrations.environments import ROOT, binary

pytestmark = pytest.mark.integration("openenv")
WEBSHOP = "stepagent/WebShop-v0"
ALFWORLD = "stepagent/ALFWorld-v0"
PACKAGE = ROOT / "integrations/openenv"


@pytest.fixture(scope="module")
def server():
    with Running(ALFWORLD, WEBSHOP) as running:
        yield running


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("path", ["", f"/{ALFWORLD}", f"/{WEBSHOP}"])
def test_validate_passes_every_check(server, path):
    validate = [binary("openenv", "openenv"), "validate", "--url", server.url + path]
    status, report, errors = run(*validate, "--json")
    assert status == 0, errors
    summary = json.loads(report)["summary"]
    assert summary["failed_criteria"] == []
    assert summary["passed_count"] == summary["total_count"] >= 6


def test_validate_accepts_our_declarations():
    validate = [binary("openenv", "openenv"), "validate", PACKAGE, "--level", "static"]
    status, report, errors = run(*validate)
    assert (status, "Verdict: PASS" in report) == (0, True), report + errors
    declared = yaml.safe_load((PACKAGE / "openenv.yaml").read_text())["validation"]["capabilities"]
    assert (PACKAGE / declared["oracle"]["location"]).is_file()
    assert declared["declared_task_count"] == {
        split: len(envs.make(WEBSHOP, split=split).tasks) for split in envs.SPLITS
    }


@pytest.mark.parametrize("env_id", [ALFWORLD, WEBSHOP])
@pytest.mark.parametrize("index", [0, 3])
def test_the_oracle_reaches_the_greatest_reward(server, env_id, index):
    oracle = [binary("openenv", "python"), PACKAGE / "oracle.py", f"{server.url}/{env_id}"]
    assert run(*oracle, "--index", str(index), "--seed", "5")[:2] == (0, "1.0\n")
