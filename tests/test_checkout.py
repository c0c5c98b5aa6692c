"""The short names of a checkout lead to the modules of the full names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code: str, cwd: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_no_class_exists_twice():
    code = (
        "import envs, gymnasium as gym\n"
        "from envs.core import TextEnv\n"
        "from stepagent.envs import core\n"
        "import eval.rollout, agents.random, training.config, stepagent.training.config\n"
        "assert TextEnv is core.TextEnv and core.__name__ == 'stepagent.envs.core'\n"
        "assert core.__spec__.name == 'stepagent.envs.core'\n"
        "assert training.config.Config is stepagent.training.config.Config\n"
        "env = gym.make('stepagent/WebShop-v0').unwrapped\n"
        "print(isinstance(env, TextEnv) and isinstance(env, core.TextEnv))"
    )
    assert python(code) == "True"


@pytest.mark.parametrize("first", ["envs.core", "stepagent.envs.core"])
def test_whichever_name_comes_first(first):
    code = f"import {first}, envs.react, stepagent.envs.react as full; print(envs.react is full)"
    assert python(code) == "True"


def test_importing_is_light():
    code = (
        "import sys, stepagent\n"
        "heavy = ('torch', 'transformers', 'py4j', 'jpype', 'spacy')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize("name", ["envs", "eval", "agents", "training"])
def test_elsewhere_a_folder_of_that_name_is_the_users_own(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("mine = True")
    (tmp_path / name / "core.py").write_text("mine = True")
    code = (
        f"import stepagent, stepagent.{name}, {name}, {name}.core\n"
        f"print({name}.mine and {name}.core.mine)"
    )
    assert python(code, tmp_path) == "True"


@pytest.mark.parametrize("module", ["eval.run", "stepagent.eval.run", "envs.serve", "eval.view"])
def test_commands_run_under_either_name(module):
    said = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0
    assert not said.stderr
    assert said.stdout.startswith("usage:")


def test_a_missing_module_is_named_as_it_was_asked_for():
    with pytest.raises(subprocess.CalledProcessError) as error:
        python("import envs.nothing")
    assert "No module named 'envs.nothing'" in error.value.stderr
