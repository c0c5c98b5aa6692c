"""What the documents show is run as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from stepagent.envs import check
from stepagent.eval import run as eval_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def vault(tmp_path, monkeypatch):
    """CONTRIBUTING's environment, written to files as a reader would."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code, prompt = (
        re.search(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE).group(1)
        for kind in ("python", "markdown")
    )
    (tmp_path / "vault.py").write_text(code)
    (tmp_path / "vault.md").write_text(prompt)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "vault:mine/Vault-v0"
    sys.modules.pop("vault", None)


def test_the_environment_of_contributing_keeps_the_contract(vault, tmp_path):
    assert check.check(vault) == []
    out = str(tmp_path / "run")
    assert eval_run.main(["--env", vault, "--agent", "expert", "--limit", "5", "--out", out]) == 0
    assert '"reward_mean": 1.0' in (tmp_path / "run" / "summary.json").read_text()


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:envs|agents|eval|training|docker|tests)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"README names {path}, which is not there"
    for config in re.findall(r"--config (\S+\.yaml)", text):
        assert (ROOT / config).is_file(), f"README names {config}, which is not there"
