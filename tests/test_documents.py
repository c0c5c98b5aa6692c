"""What the documents show is run as it is written, or at least its options exist.

Blocks of Python are run, except under `<!-- not run: REASON -->` and `<!-- run by: TEST -->`.
Commands in blocks of shell are parsed with all their options; those under `<!-- run -->` are run.
"""

import ast
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from stepagent import cli, command_line
from stepagent.envs import check
from stepagent.envs.registration import ENTRY_POINTS
from stepagent.eval import run as eval_run
from stepagent.training.methods import ALL

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs" / "pages").rglob("*.md")),
]
OTHERS = (
    *("accelerate", "cd", "docker", "inspect", "kubectl", "openenv", "pip", "pytest", "source"),
    *("vf-eval", "vf-validate", "vllm/bin/vllm"),
)
"""Commands of others, which are not looked into."""


class Block(NamedTuple):
    document: Path
    line: int
    marker: str
    language: str
    text: str

    def __str__(self):
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(language):
    """All blocks of a language, with the comment above each."""
    documented = []
    pattern = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for document in DOCUMENTS:
        text = document.read_text()
        for match in pattern.finditer(text):
            marker, kind, content = match.groups()
            if kind == language:
                line = text[: match.start()].count("\n") + 1
                documented.append(Block(document, line, marker or "", kind, content))
    return documented


def commands(block):
    """The commands of a shell block as lists of words, without variables and comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def ours(words):
    """The module and the arguments of a command of StepAgent; None for another one."""
    if words[0] == "stepagent":
        assert words[1] in cli.COMMANDS, f"there is no command {words[1]!r}"
        return cli.COMMANDS[words[1]][0], words[2:]
    if "-m" in words and (module := words[words.index("-m") + 1]).startswith("stepagent."):
        return module, words[words.index("-m") + 2 :]
    return None


class Parsed(Exception):
    """All options of a command were understood."""


@pytest.fixture
def dry(monkeypatch):
    """Commands stop once their options are parsed."""
    parse = command_line.parse

    def parse_only(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command_line, "parse", parse_only)


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_have_the_options_that_documents_give_them(block, dry):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(block):
        if command := ours(words):
            module, arguments = command
            errors = io.StringIO()
            with pytest.raises((Parsed, SystemExit)) as end, contextlib.redirect_stderr(errors):
                import_module(module).main(arguments)
            assert end.type is Parsed, f"{shlex.join(words)}: {errors.getvalue()}"
        elif words[0] == "make":
            assert words[1] in targets
        elif words[0] in ("python", "python3"):
            if words[1] != "-m":
                assert (ROOT / words[1]).is_file()
            else:
                assert importlib.util.find_spec(words[2])
        else:
            assert words[0] in OTHERS, f"{words[0]} is no command that we know"


def test_options_in_the_running_text_exist():
    pattern = re.compile(r"`stepagent ([\w-]+)((?: [^`]*)?)`")
    for document in DOCUMENTS:
        for word, rest in pattern.findall(document.read_text()):
            if not word.islower():
                continue  # `stepagent COMMAND`
            assert word in cli.COMMANDS, f"{document.name}: there is no `stepagent {word}`"
            known = _options(word)
            for option in re.findall(r"--([\w.-]+)", rest):
                name = option.replace("-", "_")
                heads = {name, name.removeprefix("no_"), name.partition(".")[0]}
                assert heads & known, f"{document.name}: `stepagent {word}` has no --{option}"


def _options(word):
    command = import_module(cli.COMMANDS[word][0]).main
    return {"config", "help", "print_config", *command_line.option_hints(command.options)}


@pytest.mark.parametrize("block", [b for b in blocks("bash") if b.marker == "run"], ids=str)
def test_marked_commands_run(block, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for words in commands(block):
        assert cli.main(words[1:]) == 0, f"{shlex.join(words)}: {capsys.readouterr()}"


@pytest.mark.parametrize(
    "block",
    [b for b in blocks("python") if not b.marker.startswith(("not run: ", "run by: "))],
    ids=str,
)
def test_python_blocks_run(block, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "document"})
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if b.marker.startswith("not run: ")], ids=str
)
def test_imports_of_blocks_that_are_not_run_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stepagent"):
            for name in node.names:
                assert hasattr(import_module(node.module), name.name)


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_sign_of_a_number_begins_a_line(document):
    """Markdown takes `+ 7.7` for an item of a list."""
    assert re.findall(r"^ *\+ \d.*", document.read_text(), re.MULTILINE) == []


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 10_000


def test_the_readme_lists_all_environments_and_methods():
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"^\| `([\w/-]+)` \|", text, re.MULTILINE)
    assert sorted(names) == sorted([*ENTRY_POINTS, *ALL, "method"])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in (one or other for one, other in links):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), f"{name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{name} links to {link}"


def test_no_line_begins_with_a_gain():
    """Markdown would make it an item of a list."""
    for document in DOCUMENTS:
        assert not re.findall(r"^\s*\+ .*$", document.read_text(), re.MULTILINE), document.name


def test_files_that_documents_name_exist():
    pattern = re.compile(
        r"`((?:envs|agents|eval|training|docker|tests|docs|examples)/[\w/-]+\.\w+)`"
    )
    for document in DOCUMENTS:
        for path in pattern.findall(document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}, which is not there"
