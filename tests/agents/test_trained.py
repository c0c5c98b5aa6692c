"""How a trained policy is prompted, from the file beside its weights."""

import json

import pytest

from stepagent import agents
from stepagent.agents import trained
from stepagent.agents.models import ModelError
from stepagent.envs.react import PromptStyle
from tests.agents.tiny_models import make_model

STYLE = PromptStyle(instruction=False, example=False, thoughts=False, suffix="Be good.")


@pytest.fixture
def folder(tmp_path, tokenizer):
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_an_agent_takes_what_it_is_not_told_otherwise(folder):
    trained.write(folder, STYLE, 7, {"date": "2026-01-01"})
    agent = agents.make_agent(f"hf:{folder}")
    assert agent.style == STYLE
    assert agent.decoding.max_new_tokens == 7
    assert agent.template == {"date": "2026-01-01"}
    agent = agents.make_agent(f"hf:{folder}", thoughts=True, max_new_tokens=9)
    assert agent.style == PromptStyle(False, False, True, "Be good.")
    assert agent.decoding.max_new_tokens == 9


def test_a_template_keeps_what_it_is_not_told_otherwise(folder):
    trained.write(folder, STYLE, 7, {"date": "2026-01-01", "enable_thinking": False})
    agent = agents.make_agent(f"hf:{folder}", template={"date": "2026-02-02"})
    assert agent.template == {"date": "2026-02-02", "enable_thinking": False}


def test_what_is_taken_is_said(folder):
    trained.write(folder, STYLE, 7, {})
    note = trained.note(f"hf:{folder}", {"example": True})
    assert note.endswith('instruction false, thoughts false, suffix "Be good.", max_new_tokens 7')
    trained.write(folder, PromptStyle(), 256, {})
    assert trained.note(f"hf:{folder}", {"max_new_tokens": 9}) == ""


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    trained.write(folder, STYLE, 7, {})
    assert agents.make_agent(f"hf:~/{folder.name}").style == STYLE


def test_a_model_of_others_has_the_usual_prompt(folder):
    assert trained.options_of(str(folder)) == {}
    assert agents.make_agent(f"hf:{folder}").style == PromptStyle()
    assert trained.options_of("no/such/folder") == {}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"thoughts": 1}', '{"max_new_tokens": true}', '{"model": "x"}',
     '{"thoughts": {"a": 1}}', "\xff", '{"format": "xml"}', '{"max_new_tokens": 0}'],
)  # fmt: skip
def test_a_damaged_file_is_named(folder, text):
    (folder / trained.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"stepagent\.json.*mend it, or delete it"):
        agents.make_agent(f"hf:{folder}")


def test_the_file_says_no_more_than_how_to_prompt(folder):
    trained.write(folder, STYLE, 7, {})
    assert set(json.loads((folder / trained.FILE).read_text())) == {
        *("instruction", "example", "thoughts", "suffix", "format", "max_new_tokens", "template"),
    }
