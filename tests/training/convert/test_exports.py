"""Trajectories of ours as other projects' rows, in JSON lines and parquet, and back."""

import json
import typing
from dataclasses import replace

import pytest

from stepagent.envs import trajectory
from stepagent.envs.layouts import CONVERTIBLE, layout_of
from stepagent.envs.records import read_records
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.convert.command import Config, main
from stepagent.training.convert.exports import EXPORTS

pytest.importorskip("trl")

GOOD = Trajectory(
    env="stepagent/HotpotQA-v0",
    task_id="bridge/1",
    split="train",
    agent="expert",
    seed=0,
    steps=(
        Step("Question: Who? é 漢", "Look it up.", "search[Who]"),
        Step("A page.", "That is it.", "finish[Me]", 1.0),
    ),
    final_observation="Right.",
    reward=1.0,
    success=True,
)
BAD = replace(GOOD, agent="smollm2", reward=0.0, success=False, steps=GOOD.steps[:1])


def export(tmp_path, to, *trajectories, suffix=".jsonl", options=(), code=0):
    source, out = tmp_path / "own.jsonl", tmp_path / f"rows{suffix}"
    trajectory.write(source, trajectories or [GOOD])
    assert main([str(source), "--out", str(out), "--to", to, *options]) == code
    return [record.value for record in read_records(out)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("to", sorted(EXPORTS))
def test_rows_are_of_the_layout_asked_for(tmp_path, to, suffix):
    rows = export(tmp_path, to, GOOD, BAD, suffix=suffix)
    assert rows
    for row in rows:
        assert layout_of(row) == to
        assert row["env"] == GOOD.env
    if suffix == ".parquet":
        assert rows == export(tmp_path, to, GOOD, BAD)


@pytest.mark.parametrize("to", ["messages", "sharegpt"])
def test_there_and_back(tmp_path, to):
    export(tmp_path, to, GOOD, BAD)
    out = tmp_path / "back.jsonl"
    assert main([str(tmp_path / f"rows{'.jsonl'}"), "--out", str(out)]) == 0
    first, second = trajectory.read(out)
    for own, converted in ((GOOD, first), (BAD, second)):
        assert converted.env == own.env
        assert converted.task_id == own.task_id
        assert converted.reward == own.reward
        assert converted.success == own.success
        assert [(s.observation, s.thought, s.action) for s in converted.steps] == [
            (s.observation, s.thought, s.action) for s in own.steps
        ]


def test_messages(tmp_path):
    (row,) = export(tmp_path, "messages", options=["--no-prompt.example"])
    contents = [(message["role"], message["content"]) for message in row["messages"]]
    assert contents[0][0] == "system"
    assert contents[1:] == [
        ("user", "Question: Who? é 漢"),
        ("assistant", "Thought: Look it up.\nAction: search[Who]"),
        ("user", "A page."),
        ("assistant", "Thought: That is it.\nAction: finish[Me]"),
    ]
    assert (row["task_id"], row["reward"], row["success"]) == ("bridge/1", 1.0, True)


def test_prompt_and_completion_are_step_by_step(tmp_path):
    first, second = export(tmp_path, "prompt-completion")
    assert [m["role"] for m in first["prompt"]] == ["system", "user"]
    assert [m["role"] for m in second["prompt"]] == ["system", "user", "assistant", "user"]
    for row, step in zip((first, second), GOOD.steps, strict=True):
        (reply,) = row["completion"]
        assert reply["role"] == "assistant"
        assert reply["content"].endswith(f"Action: {step.action}")


def test_preference_pairs_the_best_with_each_worse(tmp_path):
    other = replace(BAD, task_id="bridge/2")
    middle = replace(BAD, reward=0.5, agent="middle")
    failed = replace(BAD, error="it broke")
    rows = export(tmp_path, "preference", BAD, GOOD, other, middle, failed)
    assert [(r["chosen_reward"], r["rejected_reward"]) for r in rows] == [(1.0, 0.0), (1.0, 0.5)]
    row = rows[0]
    assert [m["role"] for m in row["prompt"]] == ["system", "user"]
    assert row["chosen"][-1]["content"].endswith("finish[Me]")
    assert [m["role"] for m in row["rejected"]] == ["assistant"]


def test_no_pair_is_an_error(tmp_path, capsys):
    source, out = tmp_path / "own.jsonl", tmp_path / "rows.jsonl"
    trajectory.write(source, [GOOD, GOOD])
    assert main([str(source), "--out", str(out), "--to", "preference"]) == 2
    assert "no task has two trajectories of different scores" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("to", ["messages", "prompt-completion", "preference"])
def test_trl_takes_the_rows(tmp_path, to):
    """As `datasets` loads the files, TRL sees conversations and renders them."""
    from datasets import load_dataset
    from trl import apply_chat_template
    from trl.data_utils import is_conversational

    export(tmp_path, to, GOOD, BAD)
    export(tmp_path, to, GOOD, BAD, suffix=".parquet")
    kinds = {"json": tmp_path / "rows.jsonl", "parquet": tmp_path / "rows.parquet"}
    rendered = []
    for kind, path in kinds.items():
        cache = str(tmp_path / "cache")
        rows = load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)
        assert is_conversational(rows[0])
        rendered.append([apply_chat_template(row, Template()) for row in rows])
    assert rendered[0] == rendered[1]
    texts = rendered[0][0]
    if to == "preference":
        assert texts["chosen"].endswith("finish[Me]>")
        assert texts["prompt"] + texts["rejected"] != texts["prompt"] + texts["chosen"]
    elif to == "prompt-completion":
        assert texts["completion"].endswith("search[Who]>")
    else:
        assert texts["text"].endswith("finish[Me]>")


class Template:
    """A tokenizer's chat template, without the tokenizer."""

    def apply_chat_template(
        self, messages, tools=None, continue_final_message=False, tokenize=True, **more
    ):
        text = "".join(f"<{m['role']}:{m['content']}>" for m in messages)
        return text + ("<assistant:" if more.get("add_generation_prompt") else "")


def test_foreign_files_become_rows_in_one_go(tmp_path):
    source, out = tmp_path / "foreign.json", tmp_path / "rows.jsonl"
    turns = [
        {"from": "human", "value": "Question: Who?"},
        {"from": "gpt", "value": "Action: finish[Me]"},
    ]
    source.write_text(json.dumps([{"conversations": turns}]))
    assert main([str(source), "--out", str(out), "--to", "messages"]) == 0
    (row,) = [record.value for record in read_records(out)]
    assert row["messages"][-1]["content"] == "Action: finish[Me]"


def test_an_unknown_environment_has_no_prompt(tmp_path, capsys):
    source, out = tmp_path / "foreign.json", tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Action: run"}]
    source.write_text(json.dumps({"messages": turns}))
    assert main([str(source), "--out", str(out), "--to", "messages"]) == 2
    assert "--env" in capsys.readouterr().err


def test_options_name_what_can_be_read_and_written():
    hints = typing.get_type_hints(Config)
    formats, _ = typing.get_args(hints["format"])
    assert typing.get_args(formats) == CONVERTIBLE
    assert typing.get_args(hints["to"]) == ("trajectories", *EXPORTS, "step-pairs")
