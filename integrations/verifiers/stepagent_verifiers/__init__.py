"""StepAgent's environments as a task set of verifiers (its `verifiers.v1` interface, 0.4).

    vf-eval stepagent-verifiers --env.taskset.env stepagent/WebShop-v0 --env.taskset.split test

The environment plays the user: its prompt is the system message, each observation a user message,
each reply of the model an action. The rewards of the steps add up to the episode's score in [0, 1].
`vf-validate stepagent-verifiers … --only-gold` plays the experts: each task's must score 1.0.
"""

from collections.abc import Iterator
from typing import Any

from stepagent.envs import react
from stepagent.envs.asynchronous import AsyncEnv
from stepagent.envs.registration import make

try:
    import verifiers.v1 as vf
except ImportError as error:
    raise ImportError("stepagent-verifiers needs verifiers 0.4, for its v1 interface") from error

__all__ = ["StepAgentEnv", "StepAgentTaskset"]


class StepAgentData(vf.TaskData):
    env: str
    task_id: str
    seed: int
    arguments: dict[str, Any]


class StepAgentTask(vf.Task[StepAgentData]):
    def open(self) -> AsyncEnv:
        return AsyncEnv(self.data.env, **self.data.arguments)

    async def reset(self, env: AsyncEnv) -> str:
        options = {"task_id": self.data.task_id}
        return (await env.reset(seed=self.data.seed, options=options))[0]

    async def validate(self, runtime: vf.Runtime) -> bool:
        async with self.open() as env:
            await self.reset(env)
            plan = await env.ask(lambda env: env.expert_plan())
            infos = [(await env.step(react.render(*turn)))[4] for turn in plan]
        return bool(infos) and infos[-1]["score"] == 1.0


class StepAgentConfig(vf.TasksetConfig):
    env: str = "stepagent/WebShop-v0"
    """Environment id, or module:Namespace/Name-v0 for a custom one."""
    split: str = "train"
    """train, dev or test."""
    seed: int = 0
    """Seed of every episode."""
    arguments: dict[str, Any] = {}
    """Further arguments of the environment: data, max_steps, or url for one on a server."""


class StepAgentTaskset(vf.Taskset[StepAgentTask, StepAgentConfig]):
    def load(self) -> Iterator[StepAgentTask]:
        config = self.config
        arguments = {**config.arguments, "split": config.split}
        env = make(config.env, **arguments)
        system_prompt, task_ids = env.prompt.system(), env.tasks
        env.close()
        for task_id in task_ids:
            data = StepAgentData(
                id=task_id,
                name=task_id,
                system_prompt=system_prompt,
                env=config.env,
                task_id=task_id,
                seed=config.seed,
                arguments=arguments,
            )
            yield StepAgentTask(data, config.task)


class StepAgentEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime=vf.SubprocessConfig())
    """The model, in a plain conversation on this machine: there are no tools to isolate."""


class StepAgentEnv(vf.Env[StepAgentEnvConfig]):
    async def run(self, task: StepAgentTask, agents: vf.Agents) -> None:
        info, rewards, ended = {}, [], False
        async with task.open() as env:
            observation = await task.reset(env)
            async with agents.player.interaction(task) as interaction:
                while not ended and not (segment := await interaction.turn(observation)).terminated:
                    reply = react.cut(segment.last_reply)
                    observation, reward, done, truncated, info = await env.step(reply)
                    rewards.append(reward)
                    ended = done or truncated
                trace = interaction.trace
                trace.record_reward("score", sum(rewards))
                trace.record_metric("success", info.get("success", False))
                trace.record_metrics(info.get("metrics", {}))
                trace.info["step_rewards"] = rewards
