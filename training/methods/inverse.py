"""StepAgent-Inverse: reflection by inverse reinforcement learning (section 4.2.2, algorithm 1).

    7       practice: in every state ŝ_t of the expert the agent draws its own actions a_t
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
baseline: a value head at the state's last token, or the mean over the actions practised there. A
new value head says 0 everywhere and is warmed up on the rewards first (`ppo.critic_warmup`).

Deviations: D passes over all pairs of the iteration before the policy's first step, where algorithm
1 alternates batch by batch, so that all actions of an iteration are judged by one D. D continues
from the one trained last; its training ends early once its accuracy on both sides reaches
`early_stop_accuracy`, and the run stops where D is at chance, or perfect without `demonstrations`,
since its reward then carries no information. PPO's log-probabilities are those of temperature 1,
whatever temperature the practice was drawn at. `reward` "final" and "both" (table 3) add free
episodes in the environment, as `ppo` plays them; each kind of reward is scaled by itself, so that
neither drowns the other.

Three more can be switched off (`inverse-paper` does): D learns from draws that differ from the
expert's, and batches count draws that have an advantage (`informative`), since most draws of a
policy after SFT are the expert's own and say nothing; the expert's action is a member of each
state's group and earns no less there than the agent's (`demonstrations`); a right action under
another thought is the expert's (`reflection.equal`), by option also another action that has the
expert's effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stepagent.agents.chat import ChatCodec
from stepagent.agents.models import load_tokenizer
from stepagent.training.config import Config
from stepagent.training.data import Sample
from stepagent.training.methods import Method, discriminator, off_policy, sft
from stepagent.training.methods.actor_critic import (
    HEAD,
    ActorCritic,
    PolicyOutputs,
    TreeAdvantages,
    step_policy,
    warm_up,
    whitened,
)
from stepagent.training.methods.branching import Branching
from stepagent.training.methods.episode_advantages import check_episodes, episode_advantages
from stepagent.training.methods.losses import group_advantages
from stepagent.training.methods.off_policy import practising_ahead, weighted
from stepagent.training.methods.own_states import practice_samples
from stepagent.training.methods.practice import (
    Practice,
    action_of,
    differing,
    practise,
    record_rewards,
)
from stepagent.training.methods.step_rewards import played_rewards
from stepagent.training.methods.step_values import check_value_rollouts
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
            actor = ActorCritic(run.policy.model, config.ppo.baseline)
            if head := stage.newest(HEAD):
                actor.load_head(head)
            items: list[TreeAdvantages] = []
            if config.inverse.reward != "final":
                items += step_advantages(run, stage, actor, entering)
            if config.inverse.reward != "step":
                items += episode_advantages(run, stage, actor, entering)
            if not items:
                stage.note("nothing to learn from; the policy stays as it is")
                continue
            with practising_ahead(run, stage, iteration):
                stage.figures |= step_policy(stage, actor, items, config, config.ppo.kl)


def check(config: Config) -> None:
    """Raises ValueError for a group baseline with groups of one: one action per state, or one
    episode per task."""
    off_policy.check(config)
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
    if config.inverse.judge == "return":
        check_value_rollouts(config, METHOD.temperature(config))


def step_advantages(
    run: TrainingRun, stage: Stage, actor: ActorCritic, entering: Path
) -> list[TreeAdvantages]:
    """Practice, judged action by action (lines 7 to 12); figures go to the stage.

    Empty where no action differs from the expert's, or where D's reward says nothing: then the
    method ends, unless it learns from final rewards besides.
    """
    config = run.config
    samples = practice_samples(run, stage)
    world = Branching(run, stage, samples)
    rows = practise(stage, run.policy, samples, config.reflection, world.with_expert_tokens)
    draws = sum(item.draws for row in rows for item in row)
    same = sum(item.draws_of_expert for row in rows for item in row)
    stage.figures |= {"practised": draws, "same_as_expert": same / max(1.0, draws)}
    if same == draws:
        stage.note("the agent acts as the expert everywhere; nothing to learn from its actions")
        return []
    rows, _ = weighted(run, stage, rows)
    practices = [(s, item) for s, row in zip(samples, rows, strict=True) for item in row]
    items = [item for _, item in practices]
    if config.inverse.judge == "oracle":
        rewards = [oracle_rewards(item, run.policy.codec) for item in items]
    elif config.inverse.judge != "discriminator":
        items, rewards = played_rewards(world, rows, config.inverse.judge)
        if not items:
            stage.note("no trajectory of the expert can be replayed: no action has a reward")
            return []
    else:
        judged, logits = judge_actions(run, stage, entering, practices)
        rewards = discriminator.rewards_of(logits, config.inverse.judge_reward)
        record_rewards(stage, practices, rewards)
        rows_of_health = [row for row in zip(judged, logits, rewards, strict=True) if row[0].draws]
        health = discriminator.health(*map(list, zip(*rows_of_health, strict=True)))
        stage.figures |= health
        stage.note(
            f"discriminator right on {health['agent_accuracy']:.0%} of the agent's and "
            f"{health['expert_accuracy']:.0%} of the expert's actions, reward gap "
            f"{health['reward_gap']:.3f}"
        )
        if reason := discriminator.verdict(
            health["agent_accuracy"], health["expert_accuracy"], config.inverse
        ):
            if config.inverse.reward == "step":
                stage.stop(reason)
            else:
                stage.note(f"only final rewards in this iteration: {reason}")
            return []
    if config.inverse.demonstrations:
        rewards = [expert_leads(*row) for row in zip(items, rewards, strict=True)]
    advantages = practice_advantages(actor, items, rewards, config)
    # With final rewards besides, the head is warmed up on episodes (`episode_advantages`).
    warms_up = config.ppo.critic_warmup and config.inverse.reward == "step"
    if actor.is_new and actor.baseline == "value" and warms_up and advantages:
        warm_up(stage, actor, advantages, config)
        advantages = practice_advantages(actor, items, rewards, config)
    return advantages


def judge_actions(
    run: TrainingRun, stage: Stage, entering: Path, practices: Sequence[tuple[Sample, Practice]]
) -> tuple[list[Practice], list[Tensor]]:
    """Lines 10 and 11: what D learns from of each practice, and `logit_agent_is_high` [A] of all of
    its actions. D continues from the newest that an earlier iteration has trained."""
    config = run.config
    with discriminator.attach(
        run.policy, config.inverse.discriminator, entering, config.seed
    ) as judge:
        if before := stage.newest(discriminator.WEIGHTS):
            judge.load(before)
        translated = [
            judge.translate(
                item, sample.trajectory.messages(run.prompt, run.style), run.policy.codec
            )
            for sample, item in practices
        ]
        learned = [differing(item) for item in translated]
        if not config.inverse.informative:
            learned = translated
        with_draws = [item for item in learned if item.draws]
        discriminator.train(stage, judge, with_draws, config.inverse.discriminator)
        logits = processes.share(translated, judge.score)
        if config.inverse.discriminator.loss == "pairwise":
            rows = zip(logits, translated, strict=True)
            logits = [discriminator.centred(row, item.tree) for row, item in rows]
        return learned, logits


def oracle_rewards(item: Practice, codec: ChatCodec) -> Tensor:
    """float32 [A]: 1 for actions that an environment reads as the expert's, 0 for the others."""
    tree = item.tree
    expert = [action_of(codec, tree.expert(step)) for step in range(len(tree.replies))]
    branches = [action_of(codec, branch.ids) == expert[branch.step] for branch in tree.branches]
    return torch.tensor([*[1.0] * len(expert), *map(float, branches)])


def practice_advantages(
    actor: ActorCritic, practices: Sequence[Practice], rewards: Sequence[Tensor], config: Config
) -> list[TreeAdvantages]:
    """Advantages of the agent's actions (and of the expert's, `inverse.demonstrations`); trees in
    which no action has one are left out. rewards[i] is float32 [A] of the i-th practice."""
    outputs = processes.share([item.tree for item in practices], actor.outputs)
    draws = [torch.tensor(item.agent) for item in practices]
    if config.inverse.demonstrations:
        draws = [
            weights + expert_members(item) for weights, item in zip(draws, practices, strict=True)
        ]
    floor = config.ppo.spread_floor
    if config.inverse.informative and actor.baseline == "group":
        advantages = _group_advantages(practices, draws, rewards, floor)
        draws = [w * (a != 0) for w, a in zip(draws, advantages, strict=True)]
    else:
        if actor.baseline == "value":
            baselines = [policy.values[policy.first] for policy in outputs]
        else:
            baselines = group_means(practices, draws, rewards)
        advantages = [r - b for r, b in zip(rewards, baselines, strict=True)]
        if config.inverse.informative:
            advantages = scaled(advantages, draws, floor)
    rows = zip(practices, outputs, rewards, draws, advantages, strict=True)
    items = [_of_practice(*row) for row in rows if float(row[3].sum())]
    return items if config.inverse.informative else whitened(items)


def expert_members(item: Practice) -> Tensor:
    """float32 [A]: 1 for the expert's action in each state where the agent drew another one."""
    steps = {branch.step for branch in item.tree.branches}
    members = [float(step in steps) for step in range(len(item.tree.replies))]
    return torch.tensor([*members, *[0.0] * len(item.tree.branches)])


def expert_leads(item: Practice, reward: Tensor) -> Tensor:
    """float32 [A]: rewards in which the expert's action earns no less than any other in its state.

    Where D takes an action of the agent for the expert's and the demonstration for the agent's, the
    policy would unlearn what it was shown.
    """
    steps = torch.tensor(item.tree.action_steps)
    return reward.scatter_reduce(0, steps, reward, "amax")


def scaled(advantages: Sequence[Tensor], draws: Sequence[Tensor], floor: float) -> list[Tensor]:
    """Advantages in units of their spread over all draws, or of `floor` where that is larger; no
    mean is shifted."""
    values, weights = torch.cat(list(advantages)), torch.cat(list(draws))
    spread = ((weights * values**2).sum() / weights.sum()).sqrt().clamp_min(floor)
    return [advantage / spread for advantage in advantages]


def _group_advantages(
    practices: Sequence[Practice],
    draws: Sequence[Tensor],
    rewards: Sequence[Tensor],
    floor: float,
) -> list[Tensor]:
    """`losses.group_advantages` with the states as groups, float32 [A] of each practice."""
    numbers: dict[int, int] = {}
    groups = [numbers.setdefault(s, len(numbers)) for item in practices for s in item.states]
    advantages = group_advantages(
        torch.cat(list(rewards)), torch.cat(list(draws)), torch.tensor(groups), floor
    )
    return list(advantages.split([len(item.agent) for item in practices]))


def _of_practice(
    item: Practice, outputs: PolicyOutputs, reward: Tensor, draws: Tensor, advantage: Tensor
) -> TreeAdvantages:
    of_token = outputs.action
    is_first = torch.zeros_like(outputs.log_probs)
    is_first[outputs.first] = 1.0
    return TreeAdvantages(
        tree=item.tree,
        actions=float(draws.sum()),
        weights=draws[of_token],
        old_log_probs=outputs.log_probs,
        advantages=advantage[of_token],
        returns=reward[of_token],
        value_weights=draws[of_token] * is_first,  # a target at the state's last token alone
    )


def group_means(
    practices: Sequence[Practice], draws: Sequence[Tensor], rewards: Sequence[Tensor]
) -> list[Tensor]:
    """For each action the mean reward of all draws in its state, float32 [A]."""
    totals: dict[int, list[float]] = {}
    for item, weights, reward in zip(practices, draws, rewards, strict=True):
        for state, weight, value in zip(
            item.states, weights.tolist(), reward.tolist(), strict=True
        ):
            total = totals.setdefault(state, [0.0, 0.0])
            total[0] += weight * value
            total[1] += weight
    return [
        torch.tensor([totals[state][0] / max(totals[state][1], 1e-9) for state in item.states])
        for item in practices
    ]


METHOD = Method(
    learn,
    check,
    stages=lambda config: config.reflection.iterations,
    other_models=lambda config: (
        0 if config.inverse.discriminator.rank else config.reflection.iterations
    ),
    practises_ahead=True,
)
