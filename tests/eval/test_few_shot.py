"""Few-shot prompts: further examples by the expert, always the same ones."""

import pytest

from stepagent import envs
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.few_shot import few_shot_prompt
from stepagent.eval.rollout import fingerprint
from tests.toy_env import ID, ScriptedAgent

PROMPT = envs.make(ID).prompt


def test_further_examples_are_experts_on_training_tasks():
    prompt = few_shot_prompt(ID, 3)
    assert prompt is not None
    assert prompt.example == PROMPT.example
    assert prompt == few_shot_prompt(ID, 3)
    assert len(prompt.more) == 2
    goals = {int(example[0][0].split()[1].rstrip(".")) % 2 for example in prompt.more}
    assert goals == {0, 1}  # one of each type
    for example in prompt.more:
        assert example[0][0].startswith("Reach ")
        assert example[-1][2].startswith("add ")
    system = prompt.system()
    assert system.count("from beginning to end") == 3
    assert system.startswith(PROMPT.system().removesuffix("\n\nNow a new task begins."))


def test_none_and_one_leave_the_prompt_as_it_is():
    assert few_shot_prompt(ID, 0) is None
    assert few_shot_prompt(ID, 1) is None
    with pytest.raises(ValueError, match="at least 0"):
        few_shot_prompt(ID, -1)


def test_more_than_there_are():
    with pytest.raises(ValueError, match=r"solved 3 of the training tasks tried, and 9 shots need"):
        few_shot_prompt(ID, 9, {"size": 3})


def test_never_two_environments_at_a_time(tmp_path, monkeypatch):
    """A server may have room for one only."""
    real, opened = envs.make, []

    def make(*args, **options):
        assert not [env for env in opened if not env.closed]
        env = real(*args, **options)
        close, env.closed = env.close, False

        def end():
            close()
            env.closed = True

        env.close = end
        opened.append(env)
        return env

    monkeypatch.setattr(envs, "make", make)
    evaluate(ID, ScriptedAgent(), tmp_path, EvaluationOptions(limit=2, shots=2, workers=1))
    assert len(opened) == 3  # for the examples, for the tasks, to play


def test_a_run_shows_its_examples_and_records_how_many(tmp_path):
    seen = []

    class Spy(ScriptedAgent):
        def act(self, turns):
            seen.extend(turn.messages[0]["content"] for turn in turns)
            return super().act(turns)

    summary = evaluate(ID, Spy(), tmp_path, EvaluationOptions(limit=2, shots=2))
    assert summary["fingerprint"]["shots"] == "2"
    assert all(text.count("from beginning to end") == 2 for text in seen)
    one = fingerprint(envs.make(ID), ScriptedAgent())
    assert "shots" not in one
    assert summary["fingerprint"]["prompt"] != one["prompt"]
