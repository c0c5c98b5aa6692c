"""Our environments as tasks of Inspect: `inspect eval stepagent/webshop --model openai/gpt-5-mini`.

Inspect finds them by the entry point `inspect_ai` of our distribution, and names them after it.
Every environment has one (`stepagent/alfworld`, …); `stepagent/environment` is for custom ones:
`-T env=module:Namespace/Name-v0`. All take `-T split=dev`, `-T seed=1` and further arguments of the
environment: `-T 'arguments={max_steps: 10}'`.

A sample is a task of the split; the model's conversation is the one that our own agents have.
Further epochs use the seeds that follow the first.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Score,
    Scorer,
    Target,
    accuracy,
    mean,
    scorer,
    stderr,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver

from stepagent.envs.asynchronous import AsyncEnv
from stepagent.envs.react import Message, PromptStyle, opening
from stepagent.envs.registration import ENTRY_POINTS, make
from stepagent.envs.trajectory import Step

_MESSAGES = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}
_STYLE = PromptStyle()


def chat_message(message: Message) -> ChatMessage:
    """A message of our conversations as one of Inspect's."""
    return _MESSAGES[message["role"]](content=message["content"])


@solver
def play(env: str, seed: int, arguments: dict[str, Any]) -> Solver:
    """Plays one episode: observations are user messages, the model's replies are actions."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        async with AsyncEnv(env, **arguments) as text_env:
            observation, info = await text_env.reset(
                seed=seed + state.epoch - 1, options={"task_id": state.sample_id}
            )
            conversation = opening(text_env.unwrapped.prompt, observation, _STYLE)
            state.messages = [chat_message(message) for message in conversation]
            ended, rewards = False, list[float]()
            while not ended:
                state.store.set("info", info)
                state.store.set("step_rewards", list(rewards))
                state = await generate(state)
                step = Step.of(observation, state.output.completion, _STYLE)
                reply = step.text(_STYLE)
                state.messages[-1] = ChatMessageAssistant(content=reply, source="generate")
                observation, reward, terminated, truncated, info = await text_env.step(reply)
                state.messages.append(ChatMessageUser(content=observation))
                rewards.append(reward)
                ended = terminated or truncated
            state.store.set("info", info)
            state.store.set("step_rewards", rewards)
        state.completed = True
        return state

    return solve


@scorer(metrics=[mean(), stderr()])
def episode_score() -> Scorer:
    """The episode's score in [0, 1], the benchmark's own measure; its other metrics as metadata."""

    async def score(state: TaskState, target: Target) -> Score:
        info = state.store.get("info", {})
        return Score(value=info.get("score", 0.0), metadata=info.get("metrics", {}))

    return score


@scorer(metrics=[accuracy(), stderr()])
def episode_success() -> Scorer:
    """Whether the benchmark counts the episode as solved."""

    async def score(state: TaskState, target: Target) -> Score:
        success = state.store.get("info", {}).get("success", False)
        return Score(value=CORRECT if success else INCORRECT)

    return score


@task
def environment(
    env: str,
    split: str = "test",
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
) -> Task:
    """All tasks of a split of an environment.

    Raises ValueError for an unknown environment or split.
    """
    arguments = {**(arguments or {}), "split": split}
    text_env = make(env, **arguments)
    samples = [Sample(id=task_id, input=f"{env} {split} {task_id}") for task_id in text_env.tasks]
    text_env.close()
    return Task(
        dataset=MemoryDataset(samples, name=f"{env} {split}"),
        solver=play(env, seed, arguments),
        scorer=[episode_score(), episode_success()],
    )


def _register(env_id: str) -> None:
    @task(name=env_id.rpartition("/")[2].removesuffix("-v0").lower())
    def of_one(split: str = "test", seed: int = 0, arguments: dict[str, Any] | None = None) -> Task:
        return environment(env_id, split, seed, arguments)


for _env_id in ENTRY_POINTS:
    _register(_env_id)
