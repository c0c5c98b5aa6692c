"""StepAgent-Inverse: reflection by inverse reinforcement learning (section 4.2.2, algorithm 1).

    7       inspection: in every state ŝ_t of the expert the agent draws its own actions a_t
    10-11   discriminator:  max_w  E_agent[log D_w(s, a)] + E_expert[log(1 - D_w(s, a))]   (eq. 11)
    12      a PPO step on the agent's actions with the discriminator's reward, and λ H(π)  (eq. 10)

**The sign of the reward.** Eq. 11 takes D to 1 on the agent's actions and to 0 on the expert's.
Eq. 10 is a saddle point: the policy *minimises* E_π[log D(s, a)], so log D is a cost, as in GAIL.
Algorithm 1 prints "reward function log D", and maximising that would reward the agent for being
told apart. What PPO maximises here is

    reward(s, a) = -log D(s, a) ≥ 0,   high where D takes the action for the expert's.

Names carry it: `logit_agent_is_high` (D = σ of it) and `expert_is_high_reward`. Tests check that
expert actions earn more than the agent's once D is trained.

A practice action ends where it is judged: the next state on the trunk is the expert's, not one the
agent's action led to. So its return is its own reward, and its advantage that reward less a
baseline: a value head at the state's last token, or the mean over the actions practised there.

Deviations: D passes over all pairs of the iteration before the policy's first step, where algorithm
1 alternates batch by batch, so that all actions of an iteration are judged by one D. D goes on from
the iteration before; its training ends early once it tells both sides right `enough` times, and the
run stops where D is perfect or at chance, since its reward then says nothing. Actions of the agent
that equal the expert's count on both sides. Advantages are whitened. PPO's log-probabilities are
those of temperature 1, whatever the practice was drawn at. `reward` "final" and "both" (table 3)
add free episodes in the environment, graded as `training.ppo` does; each kind of reward is whitened
by itself, so that neither drowns the other.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stepagent.agents.chat import Encoded
from stepagent.agents.models import load_tokenizer
from stepagent.files import write_atomically
from stepagent.training import discriminator, ppo, processes, sft
from stepagent.training.checks import check_step_trees
from stepagent.training.config import Config
from stepagent.training.dataset import Sample
from stepagent.training.discriminator import Discriminator, Practised
from stepagent.training.implicit import draw, plan
from stepagent.training.inspection import draw_replies, resumed
from stepagent.training.loop import optimise
from stepagent.training.losses import expert_is_high_reward
from stepagent.training.policy import Policy
from stepagent.training.rundir import RunDir
from stepagent.training.session import Session
from stepagent.training.surrogate import ActorCritic, Graded, Reading, whitened
from stepagent.training.tree import Branch, StepTree, split_tree

OnUpdate = Callable[[int, dict[str, float]], None]


def learn(session: Session) -> None:
    """SFT, then `iterations` times inspection and reflection, each a stage of the run.

    Raises ValueError before any training where the model cannot run the step trees, ModelError
    where the discriminator's cannot be found.
    """
    config, wanted = session.config, session.config.inverse.discriminator
    check_step_trees("inverse", session.policy, session.samples, config.reflection)
    if wanted.backbone != "policy":
        load_tokenizer(wanted.backbone)
    elif session.policy.has_adapter and not wanted.rank:
        raise ValueError(discriminator.NO_RANK)
    sft.learn(session)
    work = functools.partial(_iterate, session, session.entering())
    session.iterate(session.config.reflection.iterations, work)


def check(config: Config) -> None:
    """Raises ValueError for a baseline without a group: one action a state, or one episode a
    task."""
    practice = 1 if config.reflection.temperature == 0 else config.reflection.practice
    steps = config.inverse.reward != "final"
    if steps and config.ppo.baseline == "group" and practice < 2:
        raise ValueError(
            "ppo.baseline is group with one practice action a state (reflection.practice 1, or "
            "temperature 0): an action alone in its group has no advantage over it; practise 2 or "
            "more, or take the baseline value"
        )
    if config.inverse.reward != "step":
        ppo.check(config)


def _iterate(session: Session, entering: Path, iteration: int, name: str) -> dict[str, float]:
    """One iteration: practise, train the discriminator, step the policy."""
    config, seed = session.config, session.config.seed + 1000 * iteration
    before = session.rundir.helpers(f"iteration-{iteration - 1}")
    actor = ActorCritic(session.policy.model, config.ppo.baseline)
    actor.load_head(before / "value.safetensors")
    items: list[Graded] = []
    found: dict[str, float] = {}
    if config.inverse.reward != "final":
        items, found = _judged(session, name, actor, entering, before, seed)
        if found.get("stopped"):
            return found
    if config.inverse.reward != "step":
        graded, figures = ppo.episodes(session, name, actor, entering, seed)
        items, found = items + graded, found | figures
    return found | ppo.update(session, name, actor, items, seed, kl=config.ppo.kl)


def _judged(
    session: Session, name: str, actor: ActorCritic, entering: Path, before: Path, seed: int
) -> tuple[list[Graded], dict[str, float]]:
    """Practice actions with the advantages that the iteration's discriminator gives them."""
    config = session.config
    samples = draw(session.samples, config.reflection.trajectories, seed)
    path = session.rundir.path / "inspection" / f"{name}.jsonl"
    with session.progress(f"{name}: inspection", len(samples), "trajectories") as move:
        practised = practise(
            session.policy, samples, config, path, seed, lambda done: move(done, {})
        )
    with discriminator.attach(
        session.policy, config.inverse.discriminator, entering, config.seed
    ) as judge:
        if (before / "discriminator.safetensors").is_file():
            judge.load(before / "discriminator.safetensors")
        theirs = [
            judge.translate(
                item,
                sample.trajectory.messages(session.prompt, session.style),
                session.policy.codec,
            )
            if judge.codec
            else item
            for sample, item in practised
        ]
        updates = plan(theirs, config.inverse.discriminator, seed)
        with session.progress(f"{name}: discriminator", len(updates), "updates") as move:
            train_discriminator(judge, updates, config, session.rundir, name, move)
        logits = processes.share(theirs, judge.score)
    found = health(theirs, logits)
    session.note(
        f"{name}: discriminator right on {found['agent_accuracy']:.0%} of the agent's and "
        f"{found['expert_accuracy']:.0%} of the expert's actions, reward gap "
        f"{found['reward_gap']:.3f}"
    )
    why = discriminator.verdict(
        found["agent_accuracy"], found["expert_accuracy"], config.inverse.discriminator
    )
    if why:
        session.note(f"{name}: stopped: {why}")
        return [], found | {"stopped": 1.0}
    ours = [item for _, item in practised]
    return grade(actor, ours, [expert_is_high_reward(x) for x in logits]), found


# Inspection ---------------------------------------------------------------------------------------


def practise(
    policy: Policy,
    samples: Sequence[Sample],
    config: Config,
    path: Path,
    seed: int,
    on_trajectory: Callable[[int], None] | None = None,
) -> list[tuple[Sample, Practised]]:
    """The agent's own actions in every state of the samples (eq. 5), those like the expert's too.

    Replies are written to `path` as they are drawn; a killed run goes on.
    """
    lines = resumed(
        path,
        len(samples),
        lambda i: {
            "replies": draw_replies(policy, samples[i].encoded, config.reflection, seed + i)
        },
        on_trajectory,
    )
    return [
        (sample, part)
        for sample, line in zip(samples, lines, strict=True)
        for part in split(sample.encoded, line["replies"], config.reflection.max_tree_tokens)
    ]


def split(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> list[Practised]:
    """One trajectory's practice as trees of at most `max_tokens`; replies[i][k] are token ids.

    An action of the expert that is on several trunks counts on the first. Raises ValueError where
    a trunk with one action exceeds the limit.
    """
    branches: dict[Branch, float] = {}
    same = [0.0] * len(encoded.replies)
    for step, drawn in enumerate(replies):
        start, end = encoded.replies[step]
        for ids, count in Counter(tuple(reply) for reply in drawn).items():
            if list(ids) == encoded.ids[start:end]:
                same[step] = float(count)
            else:
                branches[Branch(step, ids)] = float(count)
    whole = StepTree(tuple(encoded.ids), tuple(encoded.replies), tuple(branches))
    parts = split_tree(whole, max_tokens)
    if len(parts[-1].replies) < len(whole.replies):  # steps behind the last branch
        parts += split_tree(replace(whole, branches=()), max_tokens)
    found, counted = [], 0
    for tree in parts:
        steps = range(len(tree.replies))
        agent = [same[i] if i >= counted else 0.0 for i in steps]
        expert = [float(len(replies[i])) if i >= counted else 0.0 for i in steps]
        counted = max(counted, len(steps))
        agent += [branches[branch] for branch in tree.branches]
        expert += [0.0] * len(tree.branches)
        found.append(Practised(tree, tuple(agent), tuple(expert)))
    return found


# Discriminator ------------------------------------------------------------------------------------


def train_discriminator(
    judge: Discriminator,
    updates: Sequence[Sequence[Practised]],
    config: Config,
    rundir: RunDir,
    name: str,
    on_update: OnUpdate,
) -> None:
    """Eq. 11 over all pairs of the iteration; what is learned is kept among the stage's helpers."""
    wanted, stage = config.inverse.discriminator, f"{name}-discriminator"
    path = rundir.helpers(name) / "discriminator.safetensors"
    if path.is_file():
        judge.load(path)
        return
    with judge.active():
        optimise(
            judge,
            updates,
            discriminator.loss,
            lambda item: item.pairs,
            wanted,
            rundir,
            stage,
            checkpoint_seconds=config.checkpoint_seconds,
            on_update=discriminator.until(wanted, on_update),
        )
        judge.eval()
    if rundir.main:
        write_atomically(path, judge.save)
        rundir.drop_checkpoint(stage)
    processes.wait()


def health(items: Sequence[Practised], logits: Sequence[Tensor]) -> dict[str, float]:
    """What the trained discriminator makes of the iteration's actions; means over them.

    logits[i] is `logit_agent_is_high` [A] of the i-th item. The figures: accuracy on both sides,
    entropy (log 2: undecided), the mean reward of either side's actions and the gap between them.
    """
    logit = torch.cat(list(logits))
    agent = torch.tensor([w for item in items for w in item.agent])
    expert = torch.tensor([w for item in items for w in item.expert])
    out = discriminator.discriminator_loss(logit, agent, expert)
    reward = expert_is_high_reward(logit)
    earned = {
        "agent_reward": float((agent * reward).sum() / agent.sum()),
        "expert_reward": float((expert * reward).sum() / expert.sum()),
    }
    return {
        "practised": float(agent.sum()),
        "same_as_expert": float(agent[expert > 0].sum() / agent.sum()),
        "agent_accuracy": float(out.agent_accuracy / agent.sum()),
        "expert_accuracy": float(out.expert_accuracy / expert.sum()),
        "discriminator_entropy": float(2 * out.entropy / (agent + expert).sum()),
        **earned,
        "reward_gap": earned["expert_reward"] - earned["agent_reward"],
    }


# Policy -------------------------------------------------------------------------------------------


def grade(
    actor: ActorCritic, items: Sequence[Practised], rewards: Sequence[Tensor]
) -> list[Graded]:
    """Advantages of the agent's actions, whitened; rewards[i] is float32 [A] of the i-th item."""
    readings = processes.share([item.tree for item in items], actor.read)
    if actor.baseline == "group":
        baselines = group_means(items, rewards)
    else:
        baselines = [reading.values[reading.first] for reading in readings]
    rows = zip(items, readings, rewards, baselines, strict=True)
    return whitened([_grade_one(*row) for row in rows if row[0].draws])


def _grade_one(item: Practised, reading: Reading, reward: Tensor, baseline: Tensor) -> Graded:
    draws, of_token = torch.tensor(item.agent), reading.action
    is_first = torch.zeros_like(reading.log_probs)
    is_first[reading.first] = 1.0
    return Graded(
        tree=item.tree,
        actions=item.draws,
        weights=draws[of_token],
        old_log_probs=reading.log_probs,
        advantages=(reward - baseline)[of_token],
        returns=reward[of_token],
        value_weights=draws[of_token] * is_first,  # asked at the state's last token
    )


def group_means(items: Sequence[Practised], rewards: Sequence[Tensor]) -> list[Tensor]:
    """For each action the mean reward of all that the agent drew in its state, float32 [A]."""
    totals: dict[int, list[float]] = {}
    keys = []
    for item, reward in zip(items, rewards, strict=True):
        tree = item.tree
        states = [hash(tree.ids[:start]) for start, _ in tree.replies]
        keys.append(states + [states[branch.step] for branch in tree.branches])
        for key, draws, value in zip(keys[-1], item.agent, reward.tolist(), strict=True):
            total = totals.setdefault(key, [0.0, 0.0])
            total[0] += draws * value
            total[1] += draws
    return [
        torch.tensor([totals[key][0] / max(totals[key][1], 1e-9) for key in row]) for row in keys
    ]
