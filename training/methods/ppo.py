"""PPO on whole episodes with the environment's final reward (Schulman et al., 2017).

In each iteration the policy plays the expert's tasks, then takes clipped steps on what it wrote:
`methods.episode_advantages` has the rewards and advantages, `methods.actor_critic` the step.

Deviations: where the paper only says PPO with the final reward, this is the form that language
models are trained with (a KL per token, a value head on the policy's hidden states which sends no
gradient into them). Advantages are taken per turn, and divided by their root mean square over an
iteration, not whitened: where most episodes succeed, subtracting a mean makes the actions of a
success unlikelier. The value head has its own learning rate and is warmed up first.
"""

from __future__ import annotations

from stepagent.training.methods import Method, sft
from stepagent.training.methods.actor_critic import HEAD, ActorCritic, step_policy
from stepagent.training.methods.episode_advantages import check_episodes, episode_advantages
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_episode_trees


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times episodes and PPO's updates.

    Raises ValueError before any training where the model cannot run the step trees.
    """
    config = run.config
    check_episode_trees(config.method, run.policy, run.samples, config.reflection)
    sft.learn(run)
    entering = run.entering()
    for iteration in range(1, config.reflection.iterations + 1):
        with run.stage(f"iteration-{iteration}", config.seed + 1000 * iteration) as stage:
            if stage.done:
                continue
            actor = ActorCritic(run.policy.model, config.ppo.baseline)
            if head := stage.newest(HEAD):
                actor.load_head(head)
            items = episode_advantages(run, stage, actor, entering)
            if not items:
                stage.note("no episode can be learned from; the policy stays as it is")
                continue
            # No KL in the loss: it is part of the reward here.
            stage.figures |= step_policy(stage, actor, items, config, kl=0.0)


METHOD = Method(learn, check_episodes, stages=lambda config: config.reflection.iterations)
