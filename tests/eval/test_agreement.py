"""Agreement with the expert, against greedy decoding and against numbers worked out by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from stepagent.agents.chat import ChatCodec  # noqa: E402
from stepagent.envs.react import Prompt, PromptStyle  # noqa: E402
from stepagent.envs.trajectory import Step, Trajectory  # noqa: E402
from stepagent.eval import agreement  # noqa: E402
from stepagent.training.tiny import TinyConfig, build_model, build_tokenizer  # noqa: E402

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
