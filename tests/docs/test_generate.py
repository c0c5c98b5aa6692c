"""What the pages take from the code: complete, or the build fails."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from xml.etree import ElementTree

import generate
import picture
import pytest

from stepagent import envs
from stepagent.envs.registration import ENTRY_POINTS
from tests.docs.conftest import DOCS


@dataclass
class Inner:
    depth: int = 3
    """How deep. 1 to 9."""


@dataclass
class Outer(Inner):
    name: str = "x"
    """What it is called."""
    inner: Inner = field(default_factory=Inner)
    """The inside."""


@dataclass
class Silent:
    volume: float = 1.0


def test_options_have_their_docstring_default_and_full_name():
    rows = [(o.name, o.default, o.help) for o in generate.options_of(Outer)]
    assert rows == [
        ("depth", "`3`", "How deep. 1 to 9."),
        ("name", "`x`", "What it is called."),
        ("inner.depth", "`3`", "How deep. 1 to 9."),
    ]


def test_an_option_without_a_docstring_is_an_error():
    with pytest.raises(generate.Undocumented, match=r"Silent\.volume"):
        generate.options_of(Silent)
    with pytest.raises(generate.Undocumented, match="'nowhere'"):
        generate.options("nowhere")


def test_every_training_option_is_on_a_page(pages):
    shown = set()
    for text in pages.values():
        for call in re.findall(r"\{\{ options\((.*?)\) \}\}", text):
            for name in re.findall(r'"([^"]*)"', call):
                shown |= {o.name for o in generate.training_options(name)}
    options = {o.name for o in generate.options_of(generate.option_class("train"))}
    assert options - shown == set()


@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_every_argument_of_an_environment_is_described(env_id, pages):
    assert "| `split` |" in generate.arguments(env_id)
    assert generate.rules(env_id)
    calls = "".join(pages.values())
    if not env_id.startswith(("stepagent/2Wiki", "stepagent/MuSiQue")):  # a page with HotpotQA
        assert f'{{{{ arguments("{env_id}") }}}}' in calls


def test_an_argument_without_a_description_is_an_error(monkeypatch):
    class SilentEnv(envs.TextEnv):
        """An environment.

        Parameters
        ----------
        loud: is described.
        """

        def __init__(self, *, loud: bool = True, quiet: bool = False, **kwargs):
            super().__init__(**kwargs)

    monkeypatch.setattr(generate, "env_class", lambda env_id: SilentEnv)
    with pytest.raises(generate.Undocumented, match="'quiet'"):
        generate.arguments("tests/Silent-v0")


def test_the_picture_is_the_one_that_the_script_draws():
    for theme in picture.THEMES:
        assert (picture.FOLDER / f"overview-{theme}.svg").read_text() == picture.draw(theme)


def test_an_equation_needs_no_script_and_can_be_read_aloud():
    html = generate.equation("a^2 < b\n\\sqrt{2}")
    assert html.count("<svg") == 2
    assert 'aria-label="a^2 &lt; b"' in html
    assert "<script" not in html


def build(folder, page):
    """The strict build of a site of one page, with the settings of ours."""
    settings = (DOCS / "zensical.toml").read_text()
    settings = re.sub(r"^nav = \[.*?^\]\n", "", settings, flags=re.DOTALL | re.MULTILINE)
    (folder / "zensical.toml").write_text(settings)
    for script in ("generate.py", "docstrings.py"):
        (folder / script).symlink_to(DOCS / script)
    (folder / "pages").mkdir()
    (folder / "pages" / "style.css").touch()
    (folder / "pages" / "index.md").write_text(f"# Home\n\n{page}\n")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("[there](index.md#nowhere)", "strict"),
        ("[there](nowhere.md)", "strict"),
        ('{{ arguments("nowhere") }}', "KeyError: 'nowhere'"),
        ("::: stepagent.nowhere", "stepagent.nowhere"),
    ],
)
def test_the_strict_build_fails(tmp_path, page, message):
    done = build(tmp_path, page)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_a_page_loads_nothing_from_the_network(tmp_path):
    done = build(tmp_path, "[here](index.md#home)\n\n```math\na^2\n```\n\n```python\nx = 1\n```")
    assert done.returncode == 0, done.stdout + done.stderr
    html = (tmp_path / "site" / "index.html").read_text()
    assert "<svg" in html
    loaded = re.findall(
        r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=[\"']?(https?:[^\"' >]*)", html
    )
    assert loaded == []


def test_results_of_a_sweep_are_shown_from_its_data(monkeypatch, tmp_path):
    shown = generate.sweep_results("methods-check")
    assert re.search(r"\d+ of \d+ runs are done", shown)
    assert "| SFT |" in shown
    drawing = shown[shown.index("<figure") : shown.index("</figure>") + len("</figure>")]
    assert ElementTree.fromstring(drawing)[0].tag.endswith("svg")
    assert "#000000" not in drawing, "dark pages have light text"
    assert "\n" not in drawing, "Markdown would end the block"
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    with pytest.raises(generate.Undocumented, match=r"copy a sweep's report\.json there"):
        generate.sweep_results("methods-check")


def test_gains_over_longer_sft_are_those_of_the_page(monkeypatch):
    picture = generate.gains_over_longer_sft()
    assert all(f">{label}</text>" in picture for label in generate.OVER_LONGER_SFT)
    page = (generate.RESULTS.parent / "pages" / "evidence.md").read_text()
    for name, title, model, row in generate.OVER_LONGER_SFT.values():
        (experiment,) = (e for e in generate._results(name) if e["name"] == title)
        (setting,) = (s for s in experiment["settings"] if s["model"] == model)
        (gain,) = (r["gain"] for r in setting["rows"] if r["name"] == row)
        assert f"{abs(gain['mean']):.1f} [" in page
    sft = ("other-labels", "Other labels", "nano", "sft-25")
    monkeypatch.setattr(generate, "OVER_LONGER_SFT", {"SFT": sft})
    with pytest.raises(generate.Undocumented, match="sft-25 has no gain over SFT for longer"):
        generate.gains_over_longer_sft()
