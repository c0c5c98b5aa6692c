"""Rollouts: determinism under any number of workers, faults that stay where they happened."""

import threading
from dataclasses import replace

import pytest

import envs
from agents.core import Agent
from envs.react import PromptStyle
from eval import rollout
from eval.rollout import run_episodes
from tests.eval.toy_world import ID, Scripted, ToyEnv

TASKS = envs.make(ID, split="test").tasks


def play(agent=None, tasks=TASKS, **kwargs):
    found = list(run_episodes(ID, agent or Scripted(), tasks, **kwargs))
    return {(t.task_id, t.seed): replace(t, seconds=0.0) for t in found}


def test_same_trajectories_with_one_worker_and_with_eight():
    one, eight = play(workers=1), play(workers=8)
    assert len(one) == len(TASKS)
    assert one == eight
    assert len({t.steps for t in one.values()}) > 10  # not all the same by accident


def test_slow_environments_and_slow_agents_change_nothing_either():
    slow = play(Scripted(delay=0.003), workers=8, env_kwargs={"delay": 0.004})
    for key, trajectory in play(workers=3).items():
        assert slow[key].steps == trajectory.steps


def test_a_seed_a_task():
    found = play(tasks=[TASKS[0]] * 3, seed=[1, 2, 3], workers=2)
    assert set(found) == {(TASKS[0], 1), (TASKS[0], 2), (TASKS[0], 3)}
    with pytest.raises(ValueError, match="2 seeds for 20 tasks"):
        run_episodes(ID, Scripted(), TASKS, seed=[1, 2])


def test_the_agents_seed_depends_on_task_and_seed():
    seen = {}

    class Spy(Scripted):
        def act(self, turns):
            seen.update({turn.key: turn.seed for turn in turns})
            return super().act(turns)

    play(Spy(), tasks=[TASKS[0], TASKS[0], TASKS[1]], seed=[1, 2, 1])
    assert len(set(seen.values())) == 3


@pytest.mark.parametrize("style", [PromptStyle(), PromptStyle(thoughts=False, example=False)])
def test_a_trajectory_writes_the_conversation_that_the_agent_saw(style):
    last = {}

    class Spy(Scripted):
        def act(self, turns):
            last.update({turn.key[1]: turn.messages for turn in turns})
            return super().act(turns)

    prompt = envs.make(ID).prompt
    for trajectory in play(Spy(style=style)).values():
        messages = trajectory.messages(prompt, style)
        assert last[trajectory.task_id] == messages[:-1]
        assert messages[-1]["role"] == "assistant"
        assert trajectory.reward == pytest.approx(sum(s.reward for s in trajectory.steps))
        assert "99" not in str(messages)  # the invented observation is cut
        assert trajectory.fingerprint["prompt"] == prompt.checksum(style)


def test_replies_are_kept_only_where_they_differ():
    steps = [s for t in play().values() for s in t.steps]
    assert {s.reply for s in steps} == {"", " ", "**Action:** add 3", "I do not know"}
    assert {s.action for s in steps if not s.reply} == {"add 1", "add 2"}


def test_environment_that_breaks_at_reset_or_step_ends_its_own_episode_only():
    for broken, step in ((TASKS[3], "reset"), (TASKS[3] + "!", "step 1")):
        made, closed = ToyEnv.made, ToyEnv.closed
        found = play(workers=2, env_kwargs={"broken": broken})
        assert len(found) == len(TASKS)
        failed = found.pop((TASKS[3], 0))
        assert failed.error.startswith("environment: RuntimeError: planted")
        assert failed.error.endswith(f"({step})")
        assert failed.reward == 0
        assert not any(t.error for t in found.values())
        assert ToyEnv.made - made == 3  # two, and one in place of the broken one
        assert ToyEnv.closed - closed == 3


def test_agent_that_fails_on_one_turn_fails_that_episode_only():
    agent = Scripted(fail="12")
    found = play(agent, workers=4)
    failed = found.pop((TASKS[5], 0))
    assert failed.error == "agent: ValueError: planted in the agent (step 1)"
    plain = play(workers=4)
    assert all(found[key].steps == plain[key].steps for key in found)
    assert len(set(agent.forgotten)) == len(TASKS)


@pytest.mark.parametrize(
    ("replies", "error"), [([], "0 replies to 1 turns"), ([7], "a reply is a str, not int")]
)
def test_agent_that_breaks_the_contract_is_told_so(replies, error):
    class Wrong(Agent):
        name = "wrong"

        def act(self, turns):
            return replies

    (found,) = play(Wrong(), tasks=TASKS[:1]).values()
    assert error in found.error


def test_hostile_replies_do_not_break_a_run():
    replies = [
        "\x00\x1b[2J",
        "a" * 200_000,
        "\ud800 lone",
        "Thought:\n\nThought:",
        "Action:",
        "日本",
    ]

    class Hostile(Agent):
        name = "hostile"

        def act(self, turns):
            return [replies[len(turn.messages) // 2 % len(replies)] for turn in turns]

    (found,) = play(Hostile(), tasks=TASKS[:1]).values()
    assert not found.error
    assert found.truncated
    assert type(found).from_json(found.to_json()) == found


def test_the_agent_gets_whoever_is_ready_up_to_its_batch_size():
    agent = Scripted(delay=0.01)
    play(agent, workers=8)
    assert max(agent.batches) == agent.batch_size
    assert sum(agent.batches) / len(agent.batches) > 3  # of 4: it lingers for full batches


def test_a_slow_environment_does_not_hold_up_the_others():
    """The slow one sleeps through one of its own steps; meanwhile all others finish."""
    gate = threading.Event()

    class Gated(ToyEnv):
        def act(self, action):
            if self.task_id == TASKS[0]:
                gate.wait(30)
            return super().act(action)

    envs.gym.register("Test/Gated-v0", entry_point=Gated, disable_env_checker=True)
    run = run_episodes("Test/Gated-v0", Scripted(), TASKS, workers=3)
    order = [next(run).task_id for _ in range(len(TASKS) - 1)]
    assert TASKS[0] not in order
    gate.set()
    assert next(run).task_id == TASKS[0]
    assert list(run) == []


def test_interrupt_delivers_what_has_ended_and_cleans_up(monkeypatch):
    closed, made = ToyEnv.closed, ToyEnv.made

    class Interrupted(Scripted):
        def act(self, turns):
            if len(self.batches) == 30:
                raise KeyboardInterrupt
            return super().act(turns)

    agent, found = Interrupted(), []
    with pytest.raises(KeyboardInterrupt):
        found.extend(run_episodes(ID, agent, TASKS, workers=4))
    assert 0 < len(found) < len(TASKS)
    assert not any(t.error for t in found)
    assert ToyEnv.closed - closed == ToyEnv.made - made == 4
    assert len(set(agent.forgotten)) >= len(found) + 1
    assert not [t for t in threading.enumerate() if t.name == "environment"]


def test_a_consumer_that_stops_early_closes_the_environments():
    closed, made = ToyEnv.closed, ToyEnv.made
    run = run_episodes(ID, Scripted(), TASKS, workers=2)
    next(run)
    run.close()
    assert ToyEnv.closed - closed == ToyEnv.made - made == 2


def test_unknown_names_are_refused_before_the_first_episode():
    with pytest.raises(ValueError, match=r"no task 'odd/8' .*such as odd/7"):
        run_episodes(ID, Scripted(), ["odd/8"])
    with pytest.raises(ValueError, match="train, dev, test"):
        run_episodes(ID, Scripted(), TASKS, split="tset")
    with pytest.raises(ValueError, match="ScienceWorld"):
        run_episodes("stepagent/Nowhere-v0", Scripted(), TASKS)


def test_fingerprint_names_environment_agent_prompt_and_version():
    found = rollout.fingerprint(envs.make(ID), Scripted())
    assert found["agent.script"] == "1"
    assert {"stepagent", "gymnasium", "data", "prompt", "arguments"} <= set(found)
    without = rollout.fingerprint(envs.make(ID), Scripted(style=PromptStyle(example=False)))
    assert found["prompt"] != without["prompt"]
