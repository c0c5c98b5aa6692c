"""What keeps `training/` readable: short signatures, and methods that stand alone."""

import ast
import importlib
from pathlib import Path

import pytest

from stepagent import training
from stepagent.training.methods import ALL, find

FOLDER = Path(training.__path__[0])
FORMULAS = {"ppo_loss", "step_dpo_loss", "step_preference_loss"}
"""Losses as functions of vectors: their parameters are the symbols of the equation."""
INTERFACES = {"step_tree_attention", "attend"}
"""Called by transformers' attention layers, with the arguments that these pass."""


def test_no_signature_has_more_than_five_parameters():
    long = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                names += [a.arg for a in node.args.kwonlyargs]
                if len([name for name in names if name != "self"]) > 5:
                    long.add(node.name)
    assert long == FORMULAS | INTERFACES


@pytest.mark.parametrize("name", ALL)
def test_a_method_imports_no_other_method_but_sft(name):
    find(name)
    others = {place.partition(":")[0] for other, place in ALL.items() if other != name}
    module = importlib.import_module(ALL[name].partition(":")[0])
    imported = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert imported & others <= {"stepagent.training.methods.sft"}
