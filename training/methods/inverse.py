"""StepAgent-Inverse: reflection by inverse reinforcement learning (section 4.2.2, algorithm 1).

    7       inspection: in every state ŝ_t of the expert the agent draws its own actions a_t
    10-11   discriminator:  max_w  E_agent[log D_w(s, a)] + E_expert[log(1 - D_w(s, a))]   (eq. 11)
    12      a PPO step on the agent's actions with the discriminator's reward, and λ H(π)  (eq. 10)

**The sign of the reward.** Eq. 11 takes D to 1 on the agent's actions and to 0 on the expert's.
Eq. 10 is a saddle point: the policy *minimises* E_π[log D(s, a)], so log D is a cost, as in GAIL.
Algorithm 1 prints "reward function log D", and maximising that would reward the agent for being
recognised. What PPO maximises here is

    reward(s, a) = -log D(s, a) ≥ 0,   high where D takes the action for the expert's.

Names carry it: `logit_agent_is_high` (D = σ of it) and `expert_is_high_reward`. Tests check that
expert actions earn more than the agent's once D is trained.

A practice action ends where it is judged: the next state on the trunk is the expert's, not one the
agent's action led to. So its return is its own reward, and its advantage that reward less a
baseline: a value head at the state's last token, or the mean over the actions practised there.

Deviations: D passes over all pairs of the iteration before the policy's first step, where algorithm
1 alternates batch by batch, so that all actions of an iteration are judged by one D. D continues
from the iteration before; its training ends early once its accuracy on both sides reaches
`early_stop_accuracy`, and the run stops where D is perfect or at chance, since its reward then
carries no information. Actions of the agent that equal the expert's count on both sides. Advantages
are whitened. PPO's log-probabilities are those of temperature 1, whatever temperature the practice
was drawn at. `reward` "final" and "both" (table 3) add free episodes in the environment, as `ppo`
plays them; each kind of reward is whitened by itself, so that neither drowns the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stepagent.agents.models import load_tokenizer
from stepagent.training.config import Config
from stepagent.training.data import draw
from stepagent.training.methods import Method, discriminator, sft
from stepagent.training.methods.actor_critic import (
    HEAD,
    ActorCritic,
    PolicyOutputs,
    TreeAdvantages,
    step_policy,
    whitened,
)
from stepagent.training.methods.episode_advantages import check_episodes, episode_advantages
from stepagent.training.methods.losses import expert_is_high_reward
from stepagent.training.methods.practice import Practice, practise, record_rewards
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_step_trees


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times practice, discriminator and PPO's updates.

    Raises ValueError before any training where the model cannot run the step trees, ModelError
    where the discriminator's cannot be found.
    """
    config, judge = run.config, run.config.inverse.discriminator
    check_step_trees(config.method, run.policy, run.samples, config.reflection)
    if judge.backbone != "policy":
        load_tokenizer(judge.backbone)
    elif run.policy.has_adapter and not judge.rank:
        raise ValueError(discriminator.NO_RANK)
    sft.learn(run)
    entering = run.entering()
    for iteration in range(1, config.reflection.iterations + 1):
        if run.stopped:
            break
        with run.stage(f"iteration-{iteration}", config.seed + 1000 * iteration) as stage:
            if stage.done:
                continue
            before = run.directory.artifacts(f"iteration-{iteration - 1}")
            actor = ActorCritic(run.policy.model, config.ppo.baseline)
            actor.load_head(before / HEAD)
            items: list[TreeAdvantages] = []
            if config.inverse.reward != "final":
                practices, logits = judged_practice(run, stage, entering, before)
                health = discriminator.health(practices, logits)
                stage.figures |= health
                stage.note(
                    f"discriminator right on {health['agent_accuracy']:.0%} of the agent's and "
                    f"{health['expert_accuracy']:.0%} of the expert's actions, reward gap "
                    f"{health['reward_gap']:.3f}"
                )
                if reason := discriminator.verdict(
                    health["agent_accuracy"], health["expert_accuracy"], judge
                ):
                    stage.stop(reason)
                    continue
                rewards = [expert_is_high_reward(logit) for logit in logits]
                items += practice_advantages(actor, practices, rewards)
            if config.inverse.reward != "step":
                items += episode_advantages(run, stage, actor, entering)
            stage.figures |= step_policy(stage, actor, items, config, config.ppo.kl)


def check(config: Config) -> None:
    """Raises ValueError for a group baseline with groups of one: one action per state, or one
    episode per task."""
    practice = 1 if config.reflection.temperature == 0 else config.reflection.practice
    uses_steps = config.inverse.reward != "final"
    if uses_steps and config.ppo.baseline == "group" and practice < 2:
        raise ValueError(
            "ppo.baseline is group with one practice action per state (reflection.practice 1, or "
            "temperature 0): an action alone in its group has no advantage over it; practise 2 or "
            "more, or take the baseline value"
        )
    if config.inverse.reward != "step":
        check_episodes(config)


def judged_practice(
    run: TrainingRun, stage: Stage, entering: Path, before: Path
) -> tuple[list[Practice], list[Tensor]]:
    """Lines 7 to 11: the iteration's practice, and `logit_agent_is_high` [A] of each one's actions
    by the discriminator trained on it, which continues from the one in the folder `before`."""
    config = run.config
    samples = draw(run.samples, config.reflection.trajectories, stage.seed)
    rows = practise(stage, run.policy, samples, config.reflection)
    practices = [(s, item) for s, row in zip(samples, rows, strict=True) for item in row]
    with discriminator.attach(
        run.policy, config.inverse.discriminator, entering, config.seed
    ) as judge:
        if (before / discriminator.WEIGHTS).is_file():
            judge.load(before / discriminator.WEIGHTS)
        translated = [
            judge.translate(
                item, sample.trajectory.messages(run.prompt, run.style), run.policy.codec
            )
            for sample, item in practices
        ]
        discriminator.train(stage, judge, translated, config.inverse.discriminator)
        logits = processes.share(translated, judge.score)
    record_rewards(stage, practices, [expert_is_high_reward(logit) for logit in logits])
    return [item for _, item in practices], logits


def practice_advantages(
    actor: ActorCritic, practices: Sequence[Practice], rewards: Sequence[Tensor]
) -> list[TreeAdvantages]:
    """Advantages of the agent's actions, whitened; rewards[i] is float32 [A] of the i-th
    practice."""
    outputs = processes.share([item.tree for item in practices], actor.outputs)
    if actor.baseline == "group":
        baselines = group_means(practices, rewards)
    else:
        baselines = [policy.values[policy.first] for policy in outputs]
    rows = zip(practices, outputs, rewards, baselines, strict=True)
    return whitened([_of_practice(*row) for row in rows if row[0].draws])


def _of_practice(
    item: Practice, outputs: PolicyOutputs, reward: Tensor, baseline: Tensor
) -> TreeAdvantages:
    draws, of_token = torch.tensor(item.agent), outputs.action
    is_first = torch.zeros_like(outputs.log_probs)
    is_first[outputs.first] = 1.0
    return TreeAdvantages(
        tree=item.tree,
        actions=item.draws,
        weights=draws[of_token],
        old_log_probs=outputs.log_probs,
        advantages=(reward - baseline)[of_token],
        returns=reward[of_token],
        value_weights=draws[of_token] * is_first,  # a target at the state's last token alone
    )


def group_means(practices: Sequence[Practice], rewards: Sequence[Tensor]) -> list[Tensor]:
    """For each action the mean reward of all that the agent drew in its state, float32 [A]."""
    totals: dict[int, list[float]] = {}
    states_of = []
    for item, reward in zip(practices, rewards, strict=True):
        tree = item.tree
        trunk = [hash(tree.ids[:start]) for start, _ in tree.replies]
        states_of.append(trunk + [trunk[branch.step] for branch in tree.branches])
        for state, draws, value in zip(states_of[-1], item.agent, reward.tolist(), strict=True):
            total = totals.setdefault(state, [0.0, 0.0])
            total[0] += draws * value
            total[1] += draws
    return [
        torch.tensor([totals[state][0] / max(totals[state][1], 1e-9) for state in states])
        for states in states_of
    ]


METHOD = Method(
    learn,
    check,
    stages=lambda config: config.reflection.iterations,
    other_models=lambda config: (
        0 if config.inverse.discriminator.rank else config.reflection.iterations
    ),
)
