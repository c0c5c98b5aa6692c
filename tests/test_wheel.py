"""The wheel: what is in it, and that it works where a user has folders of the same names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("envs", "agents", "eval", "training")


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tracked(*paths: str) -> list[str]:
    """The checkout's files, also those not yet committed, but none that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    files = run(*command, cwd=ROOT).stdout.splitlines()
    return [file for file in files if (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in a copy, so that no older build's leftovers get into it and none are left behind."""
    source = tmp_path_factory.mktemp("source")
    for file in tracked(
        "stepagent", *FOLDERS, "pyproject.toml", "setup.py", "README.md", "LICENSE"
    ):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    options = ("--no-build-isolation", "--no-deps", "--verbose", "--wheel-dir", source / "dist")
    log = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    said = log.stdout + log.stderr
    assert "Warning" not in said, said[said.index("Warning") - 500 :][:2000]
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A Python with this wheel; its dependencies are those of the tests' own environment."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    executable = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", executable)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    # A path file names the folder, whose own path files (an editable install's) are not read.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return executable


@pytest.fixture
def folder(tmp_path) -> Path:
    """A user's folder, whose modules have the names of ours and are not to be imported by us."""
    for name in ("envs", "agents"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own')")
    (tmp_path / "eval.py").write_text("raise SystemExit('the user\\'s own')")
    return tmp_path


def test_every_file_of_the_packages_is_in_it_and_nothing_else(wheel):
    contents = set(zipfile.ZipFile(wheel).namelist())
    packages = {name for name in contents if not re.match(r"stepagent-[\d.]+\.dist-info/", name)}
    files = {
        file if file.startswith("stepagent/") else f"stepagent/{file}"
        for file in tracked("stepagent", *FOLDERS)
    }
    assert packages == files


def test_it_works_beside_a_users_own_modules(python, folder):
    code = (
        "import stepagent, gymnasium as gym, stepagent.envs, sys\n"
        "env = gym.make('stepagent/WebShop-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "assert info['task_id'] and observation\n"
        "print(stepagent.__file__, stepagent.envs.__file__, sep='\\n')\n"
    )
    home = python.parents[1]
    for file in run(python, "-c", code, cwd=folder).stdout.splitlines():
        assert Path(file).is_relative_to(home), "an editable install is in the way"
    one_line = "import gymnasium; gymnasium.make('stepagent:stepagent/HotpotQA-v0').reset(seed=0)"
    run(python, "-c", one_line, cwd=folder)


def test_its_commands(python, folder):
    script = python.with_name("stepagent")
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert run(script, "--version", cwd=folder).stdout == f"stepagent {version[1]}\n"
    options = ("--env", "stepagent/WebShop-v0", "--agent", "expert", "--limit", "2", "--out")
    run(script, "eval", *options, "one", cwd=folder)
    run(python, "-m", "stepagent.eval.run", *options, "two", cwd=folder)
    shown = run(script, "replay", "one", "two", cwd=folder).stdout
    assert "4 episodes replayed, 0 differ" in shown
    shown = run(script, "train", "--config", "demo", "--print-config", cwd=folder).stdout
    assert "output: runs/demo" in shown
