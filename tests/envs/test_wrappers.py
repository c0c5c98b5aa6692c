"""Conversations are those of the evaluator; recorded episodes can be read, replayed and shared."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from stepagent.agents.expert import ExpertAgent
from stepagent.envs import trajectory as files
from stepagent.envs.react import PromptStyle
from stepagent.envs.wrappers import Conversations, MessagesWrapper, RecordTrajectories
from stepagent.eval.rollout import run_episodes

GUESS = "tests.envs.guess:tests/Guess-v0"
ALFWORLD = "stepagent/ALFWorld-v0"
MODES = ("sync", "async")


def play(env, seed, options=None):
    """Replays the expert's plan; the observations of the episode."""
    observation, _ = env.reset(seed=seed, options=options)
    observations, ended = [observation], False
    plan = iter(env.unwrapped.expert_plan())
    while not ended:
        thought, action = next(plan)
        observation, _, terminated, truncated, _ = env.step(f"Thought: {thought}\nAction: {action}")
        observations.append(observation)
        ended = terminated or truncated
    return observations


@pytest.mark.parametrize("style", [PromptStyle(), PromptStyle(example=False), PromptStyle(False)])
def test_conversations_are_those_of_the_evaluator(style):
    agent = ExpertAgent(instruction=style.instruction, example=style.example)
    task = gym.make(ALFWORLD, split="dev").unwrapped.tasks[2]
    (trajectory,) = run_episodes(ALFWORLD, agent, [task], split="dev", seed=3)
    env = MessagesWrapper(gym.make(ALFWORLD, split="dev"), style)
    conversations = play(env, 3, {"task_id": task})
    expected = trajectory.messages(env.prompt, style)
    assert list(conversations[-2]) + list(conversations[-1][-2:-1]) == expected
    assert conversations[-1][-1]["content"] == trajectory.final_observation
    assert all(conversation in env.observation_space for conversation in conversations)
    assert conversations[0] == conversations[-1][: len(conversations[0])]  # none changes afterwards


def test_a_conversation_keeps_the_words_of_a_reply():
    env = MessagesWrapper(gym.make(GUESS))
    env.reset(seed=0)
    for reply, content in (
        ("9", "9"),
        ("I think.\nAction: 9", "I think.\nAction: 9"),
        ("Thought: a\nAction: 9\nObservation: Right.", "Thought: a\nAction: 9"),
    ):
        messages, *_ = env.step(reply)
        assert messages[-2] == {"role": "assistant", "content": content}


def test_conversations_are_a_space():
    space = Conversations(seed=1)
    assert space.sample() in space
    assert space == Conversations()
    for wrong in ([], "text", ({"role": "robot", "content": ""},), ({"role": "user"},), (1,)):
        assert wrong not in space


@pytest.mark.parametrize("mode", MODES)
def test_vector_environments_give_conversations(mode):
    vector = gym.make_vec(
        GUESS,
        num_envs=2,
        vectorization_mode=mode,
        wrappers=[MessagesWrapper],
        vector_kwargs={"shared_memory": False} if mode == "async" else {},
    )
    conversations, _ = vector.reset(seed=0)
    conversations, *_ = vector.step(["9", "1"])
    assert [conversation[-2]["content"] for conversation in conversations] == ["9", "1"]
    vector.close()


def test_recorded_episodes_are_those_of_the_evaluator(tmp_path):
    path = tmp_path / "deep" / "episodes.jsonl"
    env = RecordTrajectories(gym.make(ALFWORLD, split="dev"), path, agent="expert")
    tasks = env.unwrapped.tasks[:2]
    for task in tasks:
        play(env, 5, {"task_id": task})
    env.reset(seed=1)
    env.step("look")
    env.close()  # in the middle of an episode
    recorded = files.read(path)
    played = run_episodes(ALFWORLD, ExpertAgent(), tasks, split="dev", seed=5, workers=1)
    for mine, theirs in zip(recorded, played, strict=True):
        assert mine.fingerprint.items() <= theirs.fingerprint.items() | {
            ("prompt", mine.fingerprint["prompt"])
        }
        assert {**vars(mine), "seconds": 0, "fingerprint": {}} == {
            **vars(theirs),
            "seconds": 0,
            "fingerprint": {},
        }


def test_episodes_without_a_seed_can_be_replayed(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        env = RecordTrajectories(gym.make(GUESS), path, agent="expert")
        play(env, 7)
        for _ in range(3):
            play(env, None)
        env.close()
    first, second = (files.read(path) for path in paths)
    assert [t.seed for t in first] == [t.seed for t in second]
    assert len({t.seed for t in first}) == 4
    again = gym.make(GUESS)
    for trajectory in first:
        observation, _ = again.reset(seed=trajectory.seed, options={"task_id": trajectory.task_id})
        assert observation == trajectory.steps[0].observation
        assert again.step(trajectory.steps[0].action)[4]["success"]


@pytest.mark.parametrize("mode", MODES)
def test_many_environments_write_one_file(tmp_path, mode):
    path = tmp_path / "episodes.jsonl"
    record = partial(RecordTrajectories, path=path, agent="counter")
    vector = gym.make_vec(GUESS, num_envs=4, vectorization_mode=mode, wrappers=[record])
    vector.reset(seed=0)
    ended = 0
    for number in range(40):
        _, _, terminated, truncated, _ = vector.step([str(1 + number % 8)] * 4)
        ended += int(np.sum(terminated | truncated))
    vector.close()
    trajectories = files.read(path)
    assert len(trajectories) == ended > 8
    assert {t.split for t in trajectories} == {"train"}


def test_with_both_the_record_goes_inside(tmp_path):
    path = tmp_path / "episodes.jsonl"
    env = MessagesWrapper(RecordTrajectories(gym.make(GUESS), path, agent="expert"))
    play(env, 0)
    (trajectory,) = files.read(path)
    assert (trajectory.reward, trajectory.success) == (1.0, True)
    wrong = RecordTrajectories(MessagesWrapper(gym.make(GUESS)), path, agent="expert")
    with pytest.raises(TypeError, match="wrap MessagesWrapper around it"):
        wrong.reset()
    with pytest.raises(TypeError, match="CartPoleEnv is not a"):
        MessagesWrapper(gym.make("CartPole-v1"))
