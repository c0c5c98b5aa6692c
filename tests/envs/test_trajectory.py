import json
from dataclasses import asdict, replace

import pytest

from stepagent.agents.core import ModelReply
from stepagent.envs import trajectory
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Step, Trajectory, Writer, read, write

ONE = Trajectory(
    env="tests/Guess-v0",
    task_id="small/1",
    split="train",
    agent="expert",
    seed=3,
    steps=(Step("é 漢\n", "why", "2", 0.0), Step("Higher.", "", "3", 1.0, True, "3!")),
    final_observation="Right.",
    reward=1.0,
    success=True,
    metrics={"found": 1.0},
    fingerprint={"data": "x"},
)


def test_json_gives_the_same_back():
    line = ONE.to_json()
    assert "\n" not in line
    assert Trajectory.from_json(line) == ONE


def test_tokens_are_kept_where_they_are_known():
    step = Step.of("A door.", ModelReply("Action: go\nObservation: x", [5, 6, 7]), PromptStyle())
    assert (step.action, step.tokens) == ("go", (5, 6, 7))
    line = replace(ONE, steps=(step, ONE.steps[0])).to_json()
    assert line.count('"tokens":[5,6,7]') == line.count("tokens") == 1, "else as it always was"
    assert Trajectory.from_json(line).steps == (step, ONE.steps[0])
    for bad in ('"5"', "[-1]", "[1.5]", "[true]", "null"):
        with pytest.raises(ValueError, match="tokens must be a list of token ids"):
            Trajectory.from_json(line.replace("[5,6,7]", bad))


def test_prompts_share_their_beginnings_in_files():
    """A file grows with the conversation, not with its square."""
    replies = [ModelReply("go", [7, 8]), ModelReply("go", [9]), ModelReply("look"), "wait"]
    prompts = [(1, 2, 3), (1, 2, 3, 7, 8, 4), (1, 5), ()]
    steps = []
    for reply, prompt in zip(replies, prompts, strict=True):
        if prompt:
            reply.prompt_tokens = prompt
        steps.append(Step.of("A door.", reply, PromptStyle()))
    assert [step.prompt_tokens for step in steps] == prompts
    line = replace(ONE, steps=tuple(steps)).to_json()
    written = [step.get("prompt_tokens") for step in json.loads(line)["steps"]]
    assert written == [[0, 1, 2, 3], [5, 4], [1, 5], None]
    assert Trajectory.from_json(line).steps == tuple(steps)
    with pytest.raises(ValueError, match="share more than the step before has"):
        Trajectory.from_json(line.replace("[5,4]", "[6,4]"))
    with pytest.raises(ValueError, match="prompt_tokens must be a list of token ids"):
        Trajectory.from_json(line.replace("[5,4]", "[-1]"))


def test_conversation():
    prompt = Prompt("Guess.", (("o", "t", "a"),))
    messages = ONE.messages(prompt, PromptStyle(example=False))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == "Thought: why\nAction: 2"
    assert messages[4]["content"] == "3!"
    bare = ONE.messages(prompt, PromptStyle(False, False, False))
    assert bare[1]["content"] == "2"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (ONE.to_json()[:-9], "not JSON"),
        ("[]", "JSON object"),
        (ONE.to_json().replace('"version":1', '"version":99'), "schema version 99"),
        ('{"version":1}', "not a trajectory"),
        (ONE.to_json().replace('"seed"', '"sed"'), "sed"),
        (ONE.to_json().replace('"action":"2"', '"action":2'), "action must be a str"),
        (json.dumps({**asdict(ONE), "metrics": {"em": "high"}}), "each of metrics must be a num"),
        (json.dumps({**asdict(ONE), "success": "yes"}), "success must be true or false"),
        (json.dumps({**asdict(ONE), "reward": float("nan")}), "must be finite"),
        (json.dumps({**asdict(ONE), "reward": 10**400}), "too large"),
        (json.dumps({**asdict(ONE), "metrics": {"em": -(10**400)}}), "too large"),
        (json.dumps({**asdict(ONE), "steps": [{"observation": 1}]}), "not a trajectory"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_bad_lines_are_named_and_good_ones_kept(tmp_path, line, reason):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{ONE.to_json()}\n{line}\n\n{ONE.to_json()}\n")
    with pytest.raises(ValueError, match=r"t\.jsonl:2"):
        read(path)
    bad = []
    assert read(path, bad) == [ONE, ONE]
    assert bad[0].number == 2
    assert reason in bad[0].reason


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")


def test_writer_ends_a_cut_line_first(tmp_path):
    path = tmp_path / "deep" / "t.jsonl"
    with Writer(path) as writer:
        writer.write(ONE)
    path.write_bytes(path.read_bytes()[:-10])  # killed while writing
    with Writer(path) as writer:
        writer.write(ONE)
    bad = []
    assert read(path, bad) == [ONE]
    assert [b.number for b in bad] == [1]


def test_a_full_disk_is_named(tmp_path):
    with Writer("/dev/full") as writer:
        with pytest.raises(OSError, match="/dev/full"):
            writer.write(ONE)
        writer._file = open("/dev/null", "ab")


def test_write_is_whole_or_not_there(tmp_path):
    path = tmp_path / "t.jsonl"

    def cut():
        yield ONE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, cut())
    assert not path.exists()
    write(path, [ONE, ONE])
    assert read(path) == [ONE, ONE]
    assert json.loads(path.read_text().splitlines()[0])["version"] == trajectory.VERSION


def test_the_task_type_is_the_environments_or_what_the_id_begins_with():
    assert ONE.task_type == "small"
    typed = replace(ONE, task_id="look_at-Book/trial_1", task_type="look_at")
    assert Trajectory.from_json(typed.to_json()) == typed
    older = asdict(replace(ONE, task_id="5a8b57", task_type=""))
    del older["task_type"]
    assert Trajectory.from_json(json.dumps(older)).task_type == ""
    with pytest.raises(ValueError, match="task_type must be a str"):
        Trajectory.from_json(json.dumps({**asdict(ONE), "task_type": 3}))
