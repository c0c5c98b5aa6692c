"""The notebooks run from top to bottom, are valid, and hold no outputs."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def cells(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def test_there_are_notebooks():
    assert [notebook.stem for notebook in NOTEBOOKS] == ["environments", "training"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_is_valid_and_holds_no_outputs(notebook):
    data = json.loads(notebook.read_text(encoding="utf-8"))
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert data["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in data["cells"]]
    assert len(set(names)) == len(names)
    for cell in data["cells"]:
        assert isinstance(cell["source"], list)
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        else:
            assert cell.keys() == {"cell_type", "id", "metadata", "source"}


def run_cell(source, names, where):
    """Runs a cell; what its last line is worth, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return eval(compile(ast.Expression(last.value), where, "eval"), names) if last else None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names, values = {"__name__": "__main__"}, []
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            values.append(run_cell("".join(cell["source"]), names, f"{notebook.name} {cell['id']}"))
    printed = capsys.readouterr().out
    if notebook.stem == "environments":
        assert len(values[0]) >= 7
        assert (1.0, True) in values, "the expert has solved the task"
        assert "expert   reward 1.00" in printed
        assert "expert 1" in printed
    else:
        assert list(tmp_path.glob("*/run/final/model.safetensors"))
        assert "iteration-1" in printed
        assert 0 <= values[-1] <= 1
