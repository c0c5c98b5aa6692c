"""The lowest versions that pyproject.toml allows are enough: the core tests pass on them.

By hand: `make test-lowest`. It downloads packages into a new environment, torch among them, whose
version is the pinned one: wheels of the lowest are not to be had for the CPU alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
EXTRAS = ("serve", "webshop", "train")
TESTED_WITH = (
    *("beautifulsoup4", "bm25s", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist"),
    "setuptools",
)
"""Packages of the tests themselves, in the versions of constraints.txt."""
CORE = [
    *("tests/test_command_line.py", "tests/test_cli.py", "tests/test_files.py", "tests/envs"),
    *("tests/test_checkout.py", "tests/agents", "tests/eval/test_run.py", "tests/training"),
]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-8000:]
    return done.stdout


def name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pinned(lines: list[str]) -> dict[str, str]:
    """Package → its line, of a file of requirements with comments."""
    return {name(line): line for line in lines if re.match(r"[\w.-]+==", line)}


def version(pin: str) -> Version:
    """The version of `package==version`, without the local part, such as torch's +cpu."""
    return Version(Version(pin.split("==")[1]).public)


def lowest(constraints: Path) -> dict[str, str]:
    """Package → `package==version` for all that pyproject.toml names, and what they need."""
    options = ["--quiet", "--no-build", "--no-header", "--no-annotate", "--constraint", constraints]
    options += [part for extra in EXTRAS for part in ("--extra", extra)]
    command = (shutil.which("uv", path=Path(sys.executable).parent) or "uv", "pip", "compile")
    resolution = ("--resolution", "lowest-direct", "--python", sys.executable)
    lines = run(*command, *resolution, *options, "pyproject.toml", cwd=ROOT).splitlines()
    return pinned(lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_core_tests_pass_on_the_lowest_versions(tmp_path):
    import tomllib

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = pinned(lines)
    (tmp_path / "torch.txt").write_text(pins["torch"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"]]
    direct += [need for extra in EXTRAS for need in project["optional-dependencies"][extra]]
    versions = lowest(tmp_path / "torch.txt")
    bounds = [versions[name(need)] for need in direct if name(need) in versions]
    (tmp_path / "lowest.txt").write_text("\n".join(bounds))

    home, source = tmp_path / "venv", tmp_path / "source"
    venv.create(home, symlinks=True, with_pip=True)
    python = home / "bin" / "python"
    for file in run("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / file).is_file():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
    pip = (python, "-m", "pip", "install", "--quiet")
    run(*pip, *(pins[package] for package in TESTED_WITH), cwd=source)
    needs = (f".[{','.join(EXTRAS)}]", "--no-build-isolation", "--constraint")
    run(*pip, "--editable", *needs, tmp_path / "lowest.txt", cwd=source)
    run(python, "-m", "stepagent", "install", "alfworld-data", cwd=source)
    frozen = run(*pip[:3], "freeze", cwd=source).splitlines()
    installed = pinned(frozen)
    differing = [line for line in bounds if version(line) != version(installed[name(line)])]
    assert not differing
    short = ("--tb=short", "--show-capture=no", "--disable-warnings", "-rf")
    run(python, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", *short, *CORE, cwd=source)
