"""Agreement with the expert, against greedy decoding and against numbers worked out by hand."""

import json
import math
import re
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")

import stepagent  # noqa: E402
from stepagent.agents.chat import ChatCodec  # noqa: E402
from stepagent.envs.react import Prompt, PromptStyle  # noqa: E402
from stepagent.envs.trajectory import Step, Trajectory, read, write  # noqa: E402
from stepagent.eval import agreement  # noqa: E402
from stepagent.eval.agreement import command  # noqa: E402
from stepagent.eval.results import ResultsError  # noqa: E402
from stepagent.training.tiny import TinyConfig, build_model, build_tokenizer  # noqa: E402
from tests import toy_env  # noqa: E402

PROMPT, STYLE = Prompt("Do it.", ()), PromptStyle(instruction=False, example=False, thoughts=False)


def trajectory(*steps: tuple[str, str]) -> Trajectory:
    return Trajectory(
        "Test/T-v0", "t/1", "dev", "expert", 0, tuple(Step(o, "", a) for o, a in steps)
    )


@pytest.fixture(scope="module")
def policy():
    tokenizer = build_tokenizer(["go to desk 1 and lamp 2", "You see a lamp."], 300, 256)
    model = build_model(TinyConfig(32, 2, 2, 300, 256), tokenizer, seed=0).eval()
    return model, ChatCodec(tokenizer)


@torch.no_grad()
def greedy(model, ids, end, longest=20):
    reply = []
    while len(reply) < longest and (not reply or reply[-1] != end):
        logits = model(input_ids=torch.tensor([ids + reply])).logits[0, -1]
        reply.append(int(logits.argmax()))
    return reply


def test_the_losses_are_those_of_one_pass_per_step(policy):
    model, codec = policy
    expert = trajectory(("You see a lamp.", "go to lamp 2"), ("Here.", "go to desk 1"))
    rows, left_out = agreement.measure(model, codec, [expert], PROMPT, STYLE, 256)
    encoded = codec.encode(expert.messages(PROMPT, STYLE))
    assert left_out == 0
    for (start, end), loss in zip(encoded.replies, rows[0].losses, strict=True):
        ids = torch.tensor([encoded.ids[:end]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        plain = -sum(float(log_probs[at - 1, encoded.ids[at]]) for at in range(start, end))
        assert loss == pytest.approx(plain, abs=1e-4)


def test_a_step_matches_exactly_where_greedy_decoding_writes_the_reply(policy):
    model, codec = policy
    ids = codec.encode([{"role": "user", "content": "You see a lamp."}]).ids
    own = greedy(model, ids, codec.end_of_turn_id)
    _, (same,) = agreement.read_replies(model, ids + own, [(len(ids), len(ids) + len(own))])
    other = [*own[:-1], (own[-1] + 1) % 300]
    _, (differs,) = agreement.read_replies(model, ids + other, [(len(ids), len(ids) + len(own))])
    assert same
    assert not differs


def test_what_cannot_be_read_is_counted(policy):
    model, codec = policy
    long = trajectory(("lamp " * 300, "go"))
    rows, left_out = agreement.measure(model, codec, [long, trajectory()], PROMPT, STYLE, 256)
    assert (rows, left_out) == ([], 2)
    with pytest.raises(ValueError, match="2 were left out"):
        agreement.summarise(rows, left_out)


def test_means_are_over_steps_and_intervals_over_trajectories():
    short = agreement.TrajectoryAgreement("a", (1.0,), (True,))
    long = agreement.TrajectoryAgreement("b", (2.0, 2.0, 2.0), (False, False, True))
    summary = agreement.summarise([short, long])
    assert summary.loss == pytest.approx(7 / 4)
    assert summary.step_match == pytest.approx(2 / 4)
    assert summary.trajectory_match == pytest.approx(1 / 2)
    assert summary.step_match_ci95 == (pytest.approx(1 / 3), 1.0)
    assert summary.trajectory_match_ci95 == (0.0, 1.0)
    assert (summary.steps, summary.trajectories) == (4, 2)
    assert math.isfinite(summary.loss_ci95[0])


# Two policies -------------------------------------------------------------------------------------


def reading(**rows: tuple[tuple[float, ...], tuple[bool, ...]]):
    return {name: agreement.TrajectoryAgreement(name, *row) for name, row in rows.items()}


BEFORE = reading(
    a=((4.0,), (False,)), b=((1.0, 2.0, 3.0), (True, True, False)), c=((9.0,), (True,))
)
AFTER = reading(a=((1.0,), (True,)), b=((1.0, 2.0, 4.0), (True, False, False)), d=((0.0,), (True,)))


def test_differences_are_over_the_steps_of_the_trajectories_that_both_have_read():
    gains = agreement.differences(BEFORE, AFTER)
    assert {name: d.tasks for name, d in gains.items()} == dict.fromkeys(agreement.MEASURES, 2)
    # Four steps: losses fall by 3 and rise by 1; one match more and one less.
    assert gains["loss"].mean == pytest.approx(-2 / 4)
    assert (gains["loss"].better, gains["loss"].worse) == (1, 1)
    assert gains["step_match"].mean == 0
    assert gains["trajectory_match"].mean == 1 / 2
    # Resamples are {a, a}, {a, b} and {b, b}: ratios 1 / 1, 0 / 4 and -1 / 3.
    assert (gains["step_match"].low, gains["step_match"].high) == (pytest.approx(-1 / 3), 1.0)
    assert agreement.differences(BEFORE, reading(x=((1.0,), (True,)))) == {}
    other_length = reading(a=((1.0, 1.0), (True, True)))
    assert agreement.differences(BEFORE, other_length) == {}, "another trajectory of the task"


def test_what_is_saved_is_read_again_and_a_damaged_line_is_named(tmp_path):
    summary = agreement.save(tmp_path, list(BEFORE.values()), left_out=1)
    assert agreement.load(tmp_path) == BEFORE
    saved = json.loads((tmp_path / agreement.SUMMARY).read_text())
    assert saved["step_match"] == summary.step_match == pytest.approx(3 / 5)
    assert saved["left_out"] == 1
    assert agreement.load(tmp_path / "nowhere") == {}
    with (tmp_path / agreement.ROWS).open("a") as file:
        file.write('{"task_id": "e", "losses": [1.0], "matches": []}\n')
    with pytest.raises(
        ResultsError, match=r"line 4, is no agreement: .*not one loss and one match per step"
    ):
        agreement.load(tmp_path)
    (tmp_path / agreement.ROWS).write_text('{"task_id": "a", "losses": [1.0], "ma')
    with pytest.raises(ResultsError, match="line 1"):
        agreement.load(tmp_path)


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    """The policy as a folder, and as the final policy of a training run."""
    model, codec = policy
    root = tmp_path_factory.mktemp("policies")
    for folder in (root / "plain", root / "run" / "final"):
        model.save_pretrained(folder)
        codec.tokenizer.save_pretrained(folder)
    summary = {"env": toy_env.ID, "env_args": {"size": 12}, "prompt": asdict(STYLE)}
    (root / "run" / "summary.json").write_text(json.dumps(summary))
    return root


MODEL = ["--agent-args.device", "cpu", "--agent-args.dtype", "float32"]
OPTIONS = [*MODEL, "--limit", "3"]


def test_the_command_measures_a_training_run_as_it_was_trained(saved, policy, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([str(saved / "run"), *OPTIONS, "--out", str(out)]) == 0
    expert = read(out / "expert" / "results.jsonl")
    assert {t.split for t in expert} == {"dev"}
    assert json.loads(expert[0].fingerprint["arguments"]) == {"size": 12}
    model, codec = policy
    env = stepagent.make(toy_env.ID, split="dev")
    rows, _ = agreement.measure(model, codec, expert, env.prompt, STYLE, 256)
    measured = agreement.load(out)
    assert measured.keys() == {row.task_id for row in rows}
    for row in rows:
        assert measured[row.task_id].losses == pytest.approx(row.losses, abs=1e-4)
    assert "step match" in capsys.readouterr().out


def test_the_command_compares_all_with_the_first_on_a_file(saved, tmp_path):
    first = tmp_path / "first"
    assert command.main([str(saved / "run"), *OPTIONS, "--out", str(first)]) == 0
    file, out = first / "expert" / "results.jsonl", tmp_path / "out"
    names = [str(saved / "run"), str(saved / "plain")]
    options = ["--trajectories", str(file), "--no-example", "--no-thoughts", "--out", str(out)]
    assert command.main([*names, *options, *MODEL]) == 0
    table = json.loads((out / "table.json").read_text())
    assert list(table["policies"]) == names
    assert table["compared_with"] == names[0]
    gain = table["differences"][names[1]]["loss"]
    one, two = (table["policies"][name]["loss"] for name in names)
    assert gain["tasks"] == 3
    assert gain["mean"] == pytest.approx(two - one), "the second reads the instruction, too"
    assert gain["mean"] != 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{plain}"], "--env is missing"),
        (["--policies", "[]"], "name at least one policy"),
        (["{plain}", "--trajectories", "{file}", "--split", "test"], "it has .*split dev"),
        (["{plain}", "--trajectories", "nowhere.jsonl"], "nowhere.jsonl"),
        (["nowhere", "--env", toy_env.ID], "nowhere"),
    ],
)
def test_what_is_wrong_is_said(saved, tmp_path, capsys, words, message):
    write(tmp_path / "dev.jsonl", [trajectory(("o", "go"))])
    names = {"plain": saved / "plain", "file": tmp_path / "dev.jsonl"}
    words = [word.format(**names) for word in words]
    assert command.main([*words, "--min-reward", "0", "--out", str(tmp_path)]) in (1, 2)
    assert re.search(message, capsys.readouterr().err)
