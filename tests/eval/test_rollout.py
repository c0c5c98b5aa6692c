"""Rollouts: determinism under any number of workers, faults that stay where they happened."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import pytest

from stepagent import envs, optional, register
from stepagent.agents.core import Agent
from stepagent.envs.react import PromptStyle
from stepagent.errors import SetupError
from stepagent.eval import rollout
from stepagent.eval.env_workers import Episode, Start
from stepagent.eval.rollout import run_episodes, run_from
from tests.toy_env import ID, ScriptedAgent, ToyEnv

TASKS = envs.make(ID, split="test").tasks


def play(agent=None, tasks=TASKS, **kwargs):
    trajectories = list(run_episodes(ID, agent or ScriptedAgent(), tasks, **kwargs))
    return {(t.task_id, t.seed): replace(t, seconds=0.0) for t in trajectories}


def test_same_trajectories_with_one_worker_and_with_eight():
    one, eight = play(workers=1), play(workers=8)
    assert len(one) == len(TASKS)
    assert one == eight
    assert len({t.steps for t in one.values()}) > 10  # not all the same by accident


def test_slow_environments_and_slow_agents_change_nothing_either():
    slow = play(ScriptedAgent(delay=0.003), workers=8, env_args={"delay": 0.004})
    for key, trajectory in play(workers=3).items():
        assert slow[key].steps == trajectory.steps


def test_one_seed_per_task():
    episodes = play(tasks=[TASKS[0]] * 3, seed=[1, 2, 3], workers=2)
    assert set(episodes) == {(TASKS[0], 1), (TASKS[0], 2), (TASKS[0], 3)}
    with pytest.raises(ValueError, match="2 seeds for 20 tasks"):
        run_episodes(ID, ScriptedAgent(), TASKS, seed=[1, 2])


def test_replies_are_played_before_the_agent_is_asked():
    """As if it had given them itself: the same conversation, trajectory and draws afterwards."""
    whole = play(tasks=[TASKS[5]])[TASKS[5], 0]
    replies = tuple(step.text(PromptStyle()) for step in whole.steps)
    asked = {}

    class Spy(ScriptedAgent):
        def act(self, turns):
            asked.update({(turn.key[0], self._n(turn)): list(turn.messages) for turn in turns})
            return super().act(turns)

    starts = [Start(TASKS[5], 0, replies[:n]) for n in range(len(replies) + 1)]
    for workers in (1, 4):
        asked.clear()
        episodes = dict(run_from(ID, Spy(), starts, workers=workers))
        assert {i: replace(t, seconds=0.0) for i, t in episodes.items()} == dict.fromkeys(
            range(len(starts)), whole
        )
        assert min(turn for start, turn in asked if start == 2) == 2
        assert not any(start == len(replies) for start, _ in asked), "it had ended by then"
    conversation = whole.messages(envs.make(ID).prompt, PromptStyle())
    assert asked[2, 2] == conversation[: len(asked[2, 2])]


def test_an_episode_may_end_behind_its_replies():
    whole = play(tasks=[TASKS[5]])[TASKS[5], 0]
    replies = tuple(step.text(PromptStyle()) for step in whole.steps)
    starts = [Start(TASKS[5], 0, replies[:n], play_on=False) for n in range(len(replies) + 1)]
    agent = ScriptedAgent()
    episodes = dict(run_from(ID, agent, starts, workers=3))
    assert not agent.batches, "the agent is never asked"
    observations = [step.observation for step in whole.steps] + [whole.final_observation]
    for n, trajectory in episodes.items():
        assert trajectory.steps == whole.steps[:n]
        assert trajectory.final_observation == observations[n]
        assert trajectory.reward == pytest.approx(sum(step.reward for step in whole.steps[:n]))
        assert not trajectory.error
    assert len(episodes) == len(starts)


def test_replies_beyond_the_end_of_an_episode_are_not_played():
    goal = ("add 3", "add 3", "add 3", "add 3", "add 3")
    [(_, trajectory)] = run_from(ID, ScriptedAgent(), [Start("odd/7", 0, goal)])
    assert len(trajectory.steps) < len(goal)


def test_the_agents_seed_depends_on_task_and_seed():
    seen = {}

    class Spy(ScriptedAgent):
        def act(self, turns):
            seen.update({turn.key: turn.seed for turn in turns})
            return super().act(turns)

    play(Spy(), tasks=[TASKS[0], TASKS[0], TASKS[1]], seed=[1, 2, 1])
    assert len(set(seen.values())) == 3


def test_starts_of_another_salt_are_drawn_differently():
    seen = {}

    class Spy(ScriptedAgent):
        def act(self, turns):
            seen.update({turn.key[0]: turn.seed for turn in turns})
            return super().act(turns)

    starts = [Start(TASKS[0], 1, salt=salt) for salt in ("", "a", "b", "a")] + [Start(TASKS[0], 1)]
    list(run_from(ID, Spy(), starts, workers=2))
    assert seen[0] == seen[4]
    assert seen[1] == seen[3]
    assert len(set(seen.values())) == 3


def test_tasks_and_salts_that_are_neighbours_share_no_seed():
    starts = [Start(f"odd/{i}", 0, salt=f"0/rft-{k}") for i in range(40) for k in range(4)]
    seeds = {
        Episode(n, start, SimpleNamespace(env=1)).turn().seed for n, start in enumerate(starts)
    }
    assert len(seeds) == len(starts)


@pytest.mark.parametrize("style", [PromptStyle(), PromptStyle(thoughts=False, example=False)])
def test_a_trajectory_writes_the_conversation_that_the_agent_saw(style):
    last = {}

    class Spy(ScriptedAgent):
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


def test_replies_are_recorded_only_where_they_differ():
    steps = [s for t in play().values() for s in t.steps]
    assert {s.reply for s in steps} == {"", " ", "**Action:** add 3", "I do not know"}
    assert {s.action for s in steps if not s.reply} == {"add 1", "add 2"}


def test_environment_that_breaks_at_reset_or_step_ends_its_own_episode_only():
    for broken, step in ((TASKS[3], "reset"), (TASKS[3] + "!", "step 1")):
        opened, closed = ToyEnv.opened, ToyEnv.closed
        episodes = play(workers=2, env_args={"broken": broken})
        assert len(episodes) == len(TASKS)
        failed = episodes.pop((TASKS[3], 0))
        assert failed.error.startswith("environment: RuntimeError: planted")
        assert failed.error.endswith(f"({step})")
        assert failed.reward == 0
        assert not any(t.error for t in episodes.values())
        assert ToyEnv.opened - opened == 3  # two, and one in place of the broken one
        assert ToyEnv.closed - closed == 3


class UnplayableEnv(ToyEnv):
    """Lacks a package, which shows with the third task."""

    def begin(self, task_id):
        if task_id == TASKS[2]:
            raise optional.missing("playwright")
        return super().begin(task_id)


@pytest.mark.parametrize("workers", [1, 4])
def test_what_would_fail_every_episode_ends_the_rollout(workers):
    if "Test/Unplayable-v0" not in gym.registry:
        register("Test/Unplayable-v0", UnplayableEnv)
    opened, closed = ToyEnv.opened, ToyEnv.closed
    played = []
    episodes = run_episodes("Test/Unplayable-v0", ScriptedAgent(), TASKS, workers=workers)
    with pytest.raises(optional.MissingPackage, match="pip install"):
        played.extend(trajectory.task_id for trajectory in episodes)
    assert set(played) <= {*TASKS} - {TASKS[2]}
    assert workers > 1 or played == [*TASKS[:2]], "what was played until then is there"
    assert ToyEnv.closed - closed == ToyEnv.opened - opened


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_that_could_answer_nothing_ends_the_rollout(streaming):
    class Refused(ScriptedAgent):
        def act(self, turns):
            raise SetupError("the key is refused")

        def submit(self, turns):
            self.keys = [turn.key for turn in turns]

        def poll(self):
            return [(key, SetupError("the key is refused")) for key in self.keys]

    agent = Refused()
    agent.streaming = streaming
    with pytest.raises(SetupError, match="the key is refused"):
        play(agent)


class TypedEnv(ToyEnv):
    @property
    def task_type(self):
        return f"by {self.task_id[-1]}"


def test_trajectories_carry_the_task_type_even_of_episodes_that_fail():
    register("Test/Typed-v0", TypedEnv)
    options = {"env_args": {"broken": TASKS[3]}, "workers": 2}
    episodes = list(run_episodes("Test/Typed-v0", ScriptedAgent(), TASKS, **options))
    assert [t.task_id for t in episodes if t.error] == [TASKS[3]]
    assert all(t.task_type == f"by {t.task_id[-1]}" for t in episodes)


def test_agent_that_fails_on_one_turn_fails_that_episode_only():
    agent = ScriptedAgent(fail="12")
    episodes = play(agent, workers=4)
    failed = episodes.pop((TASKS[5], 0))
    assert failed.error == "agent: ValueError: planted in the agent (step 1)"
    without_failure = play(workers=4)
    assert all(episodes[key].steps == without_failure[key].steps for key in episodes)
    assert len(set(agent.forgotten)) == len(TASKS)


@pytest.mark.parametrize(
    ("replies", "error"), [([], "0 replies to 1 turns"), ([7], "a reply is a str, not int")]
)
def test_agent_that_breaks_the_contract_fails_its_episode(replies, error):
    class Wrong(Agent):
        name = "wrong"

        def act(self, turns):
            return replies

    (episode,) = play(Wrong(), tasks=TASKS[:1]).values()
    assert error in episode.error


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

    (episode,) = play(Hostile(), tasks=TASKS[:1]).values()
    assert not episode.error
    assert episode.truncated
    assert type(episode).from_json(episode.to_json()) == episode


def test_the_agent_gets_whoever_is_ready_up_to_its_batch_size():
    agent = ScriptedAgent(delay=0.01)
    play(agent, workers=8)
    assert max(agent.batches) == agent.batch_size
    assert sum(agent.batches) / len(agent.batches) > 3  # of 4: it waits for full batches


def test_a_slow_environment_does_not_delay_the_others():
    """The slow one sleeps through one of its own steps; meanwhile all others finish."""
    gate = threading.Event()

    class Gated(ToyEnv):
        def act(self, action):
            if self.task_id == TASKS[0]:
                gate.wait(30)
            return super().act(action)

    envs.registration.gym.register("Test/Gated-v0", entry_point=Gated, disable_env_checker=True)
    run = run_episodes("Test/Gated-v0", ScriptedAgent(), TASKS, workers=3)
    order = [next(run).task_id for _ in range(len(TASKS) - 1)]
    assert TASKS[0] not in order
    gate.set()
    assert next(run).task_id == TASKS[0]
    assert list(run) == []


class Streaming(ScriptedAgent):
    """The same replies, returned one by one while others are still being generated."""

    streaming = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.under_way = {}

    def submit(self, turns):
        for turn in turns:
            assert turn.key not in self.under_way
            self.under_way[turn.key] = (turn, 1 + turn.seed % 3)
        assert len(self.under_way) <= self.batch_size

    def poll(self):
        self.batches.append(len(self.under_way))
        time.sleep(self.delay)
        ready = [key for key, (_, left) in self.under_way.items() if left == 1]
        replies = [(key, self._reply_or_why(self.under_way.pop(key)[0])) for key in ready]
        self.under_way = {key: (turn, left - 1) for key, (turn, left) in self.under_way.items()}
        return replies

    def _reply_or_why(self, turn):
        try:
            return self._reply(turn)
        except ValueError as error:
            return error

    def forget(self, key):
        self.under_way.pop(key, None)
        super().forget(key)


def test_a_streaming_agent_plays_the_same_episodes():
    assert play(Streaming(), workers=1) == play(Streaming(), workers=8) == play(workers=3)
    agent = Streaming(delay=0.002)
    play(agent, workers=8)
    assert max(agent.batches) == agent.batch_size
    failing = play(Streaming(fail="12"), workers=4)
    assert failing.pop((TASKS[5], 0)).error == "agent: ValueError: planted in the agent (step 1)"
    assert not any(t.error for t in failing.values())


def test_a_streaming_agent_that_breaks_loses_only_the_turn_that_broke_it():
    class Breaking(Streaming):
        def poll(self):
            if any("Reach 12." in str(turn.messages) for turn, _ in self.under_way.values()):
                raise RuntimeError("out of memory")
            return super().poll()

        def act(self, turns):
            if any("Reach 12." in str(turn.messages) for turn in turns):
                raise RuntimeError("out of memory")
            return super().act(turns)

    episodes = play(Breaking(), workers=4)
    assert episodes.pop((TASKS[5], 0)).error == "agent: RuntimeError: out of memory (step 1)"
    without_failure = play(workers=4)
    assert all(episodes[key].steps == without_failure[key].steps for key in episodes)


class Stuck:
    """Lets one task hang until it is released."""

    def __init__(self):
        self.gate = threading.Event()

    def hangs(self, turn):
        return "Reach 12." in str(turn.messages) and len(turn.messages) > 3


@pytest.mark.parametrize("kind", [ScriptedAgent, Streaming])
def test_an_agent_that_hangs_on_one_episode_loses_that_one_only(kind):
    stuck = Stuck()

    class Hanging(kind):
        def _reply(self, turn):
            if stuck.hangs(turn):
                stuck.gate.wait(60)
            return super()._reply(turn)

    episodes = play(Hanging(), workers=4, time_limit=2.0)
    stuck.gate.set()
    failed = episodes.pop((TASKS[5], 0))
    assert failed.error == "agent: TimeoutError: no reply within 2 s (step 2)"
    assert len(failed.steps) == 1
    without_failure = play(workers=4)
    assert {key: t.steps for key, t in episodes.items()} == {
        key: without_failure[key].steps for key in episodes
    }


@pytest.mark.parametrize(
    ("kind", "where"), [(ScriptedAgent, "act"), (Streaming, "poll"), (Streaming, "submit")]
)
def test_an_agent_that_hangs_on_all_is_not_asked_for_each(kind, where):
    """Otherwise it takes a time limit per open episode before anything is reported."""
    gate, calls = threading.Event(), []

    class Hanging(kind):
        batch_size = 8

        def act(self, *turns):
            calls.append(turns)
            gate.wait(60)

    setattr(Hanging, where, Hanging.act)
    try:
        episodes = play(Hanging(), tasks=TASKS[:8], workers=8, time_limit=0.3)
    finally:
        gate.set()
    assert len(episodes) == 8
    errors = {t.error for t in episodes.values()}
    assert errors == {"agent: TimeoutError: no reply within 0.3 s (step 1)"}
    assert len(calls) < 8


def test_a_streaming_agent_that_never_answers_one_turn():
    class Silent(Streaming):
        def poll(self):
            replies = super().poll()
            time.sleep(0.01)
            return [(key, reply) for key, reply in replies if key[1] != TASKS[5]]

    episodes = play(Silent(), workers=4, time_limit=2.0)
    assert "no reply within 2 s (step 1)" in episodes.pop((TASKS[5], 0)).error
    assert not any(t.error for t in episodes.values())


def test_an_environment_that_hangs_is_abandoned_and_replaced():
    gate = threading.Event()

    class Hanging(ToyEnv):
        def act(self, action):
            if self.task_id == TASKS[3]:
                gate.wait(60)
            return super().act(action)

    envs.registration.gym.register("Test/Hanging-v0", entry_point=Hanging, disable_env_checker=True)
    try:
        run = run_episodes("Test/Hanging-v0", ScriptedAgent(), TASKS, workers=2, time_limit=2.0)
        episodes = {t.task_id: t for t in run}
    finally:
        gate.set()
    failed = episodes.pop(TASKS[3])
    assert failed.error == "environment: TimeoutError: no answer within 2 s (step 1)"
    assert len(episodes) == len(TASKS) - 1
    assert not any(t.error for t in episodes.values())


def test_a_time_limit_must_be_positive():
    with pytest.raises(ValueError, match="above 0 seconds"):
        run_episodes(ID, ScriptedAgent(), TASKS, time_limit=0)


def test_interrupt_delivers_what_has_ended_and_cleans_up(monkeypatch):
    closed, opened = ToyEnv.closed, ToyEnv.opened

    class Interrupted(ScriptedAgent):
        def act(self, turns):
            if len(self.batches) == 30:
                raise KeyboardInterrupt
            return super().act(turns)

    agent, episodes = Interrupted(), []
    with pytest.raises(KeyboardInterrupt):
        episodes.extend(run_episodes(ID, agent, TASKS, workers=4))
    assert 0 < len(episodes) < len(TASKS)
    assert not any(t.error for t in episodes)
    assert ToyEnv.closed - closed == ToyEnv.opened - opened == 4
    assert len(set(agent.forgotten)) >= len(episodes) + 1
    assert not [t for t in threading.enumerate() if t.name == "environment"]


@pytest.mark.parametrize("kind", [ScriptedAgent, Streaming])
def test_an_error_that_hides_an_interrupt_is_the_interrupt(kind):
    """What an agent calls may tidy up after Ctrl-C, and fail at that."""

    def tidy_up_badly():
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("the connection is closed")

    class Interrupted(kind):
        def act(self, turns):
            return tidy_up_badly() if len(self.batches) == 3 else super().act(turns)

        def poll(self):
            return tidy_up_badly() if len(self.batches) == 3 else super().poll()

    with pytest.raises(KeyboardInterrupt):
        list(run_episodes(ID, Interrupted(), TASKS, workers=4))


def test_a_consumer_that_stops_early_closes_the_environments():
    closed, opened = ToyEnv.closed, ToyEnv.opened
    run = run_episodes(ID, ScriptedAgent(), TASKS, workers=2)
    next(run)
    run.close()
    assert ToyEnv.closed - closed == ToyEnv.opened - opened == 2


def test_unknown_names_are_refused_before_the_first_episode():
    with pytest.raises(ValueError, match=r"no task 'odd/8' .*such as odd/7"):
        run_episodes(ID, ScriptedAgent(), ["odd/8"])
    with pytest.raises(ValueError, match="train, dev, test"):
        run_episodes(ID, ScriptedAgent(), TASKS, split="tset")
    with pytest.raises(ValueError, match="ScienceWorld"):
        run_episodes("stepagent/Nowhere-v0", ScriptedAgent(), TASKS)


def test_fingerprint_names_environment_agent_prompt_and_version():
    parts = rollout.fingerprint(envs.make(ID), ScriptedAgent())
    assert parts["agent.script"] == "1"
    assert {"stepagent", "gymnasium", "data", "prompt", "arguments"} <= set(parts)
    without = rollout.fingerprint(envs.make(ID), ScriptedAgent(style=PromptStyle(example=False)))
    assert parts["prompt"] != without["prompt"]
