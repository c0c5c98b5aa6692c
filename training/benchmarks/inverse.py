"""Benchmark of one iteration of StepAgent-Inverse against the plain way of doing the same.

Over the same expert trajectory and the same practice actions, both sides do what `methods.inverse`
does after the practice: train the discriminator (forward and backward), score all actions with it,
compute the old log-probabilities, and PPO's loss (forward and backward). Ours does each in one pass
over the step tree, the plain way with every (state, action) in a sequence of its own, those of a
state as one padded batch. Both have the same model, heads and losses.

Each measurement runs in a process of its own, so that its peak memory is its own; sides take turns.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepagent.agents.chat import Encoded
from stepagent.eval.benches import Options, Row, settings
from stepagent.files import read_text
from stepagent.training.benchmarks.step_trees import Setting, long_trajectories, shared_practice
from stepagent.training.config import Config, PolicyConfig, PpoConfig
from stepagent.training.methods import actor_critic, discriminator, inverse
from stepagent.training.methods.actor_critic import ActorCritic
from stepagent.training.methods.discriminator import Discriminator, attach
from stepagent.training.methods.losses import discriminator_loss, expert_is_high_reward, ppo_loss
from stepagent.training.methods.practice import Practice, practice_trees
from stepagent.training.policy import Policy

PPO = PpoConfig(baseline="group", kl=0.05, entropy=0.01)
ALGORITHM_1 = Config(output="")
"""Every draw counts, and the expert's action is no member of a group."""
ALGORITHM_1.inverse.demonstrations = ALGORITHM_1.inverse.informative = False


def bench(options: Options) -> list[Row]:
    """Seconds and peak memory of both sides. Settings: steps, practice, max_new_tokens, rank."""
    sizes = settings(options, steps=20, practice=2, max_new_tokens=32, rank=16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(_task(options, sizes)))
        sides: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for number in range(options.repeats):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                sides[side].append(_in_own_process(side, path))

    def median(side: str, name: str) -> float:
        return statistics.median(measured[name] for measured in sides[side])

    ours, plain = sides["ours"][0], sides["plain"][0]
    size = f"{sizes['steps']} steps, K = {sizes['practice']}"
    title = f"inverse, {size} ({ours['tokens']:.0f} tokens packed, {plain['tokens']:.0f} plain)"
    rows = [
        Row.less_is_better(title, median("ours", "seconds"), median("plain", "seconds"), "s"),
        Row.less_is_better("peak memory", median("ours", "peak"), median("plain", "peak"), "GB"),
    ]
    for name in ("discriminator", "ppo"):
        title = f"loss of {name} (ours and plain should agree)"
        rows.append(Row(title, ours[name], plain[name], ours[name] / plain[name], "nats"))
    return rows


def _task(options: Options, sizes: dict[str, Any]) -> dict[str, Any]:
    """An expert trajectory with practice actions, as JSON for the measuring processes."""
    setting = Setting(options, options.dtype)
    [trajectory] = long_trajectories(1, sizes["steps"])
    encoded = setting.encode(trajectory)
    sampling = setting.sampling(sizes["practice"], 1.0, sizes["max_new_tokens"])
    replies = shared_practice(setting, encoded, sampling)
    model = {"model": options.model, "dtype": options.dtype, "device": options.device}
    return {**asdict(encoded), "practice": replies, "rank": sizes["rank"], **model}


def _in_own_process(side: str, path: Path) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_side, (side, str(path)))


def measure_side(side: str, path: str) -> dict[str, float]:
    """One iteration by one side: seconds, peak memory in GB, tokens read, both losses."""
    task = json.loads(read_text(Path(path)))
    replies, joins = ([(a, b) for a, b in task[name]] for name in ("replies", "joins"))
    encoded = Encoded(task["ids"], replies, joins=joins)
    [item] = practice_trees(encoded, task["practice"], 10**6)
    config = PolicyConfig(model=task["model"], dtype=task["dtype"], device=task["device"])
    config.lora.r = task["rank"]
    policy = Policy.load(config)
    judge_config = Config(output="").inverse.discriminator
    judge_config.rank = task["rank"]
    with attach(policy, judge_config, Path(path), seed=0) as judge:
        actor = ActorCritic(policy.model, PPO.baseline)
        work = {"ours": _ours, "plain": _plain}[side]
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        measured = work(judge, actor, item)
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        measured["seconds"] = time.perf_counter() - start
    measured["peak"] = _peak_gigabytes(policy.device)
    return measured


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _ours(judge: Discriminator, actor: ActorCritic, item: Practice) -> dict[str, float]:
    """The trainer's own functions, over the step tree."""
    with judge.active():
        judge.train()
        loss, _ = discriminator.loss(ALGORITHM_1.inverse.discriminator)(judge, [item])
        (loss / item.pairs).backward()
    rewards = expert_is_high_reward(judge.score(item))
    [advantages] = inverse.practice_advantages(actor, [item], [rewards], ALGORITHM_1)
    actor.train()
    policy_loss, _ = actor_critic.loss(PPO, PPO.kl)(actor, (advantages,))
    (policy_loss / item.draws).backward()
    return {
        "discriminator": float(loss.detach()) / item.pairs,
        "ppo": float(policy_loss.detach()) / item.draws,
        "tokens": float(item.tree.length),
    }


def _plain(judge: Discriminator, actor: ActorCritic, item: Practice) -> dict[str, float]:
    """The same with plain forwards: for each state, its actions as a padded batch."""
    states = _states(item)
    agent, expert = torch.tensor(item.agent), torch.tensor(item.expert)
    device = judge.head.weight.device
    model = actor.model
    model.get_base_model().set_attn_implementation("sdpa")
    total = 0.0
    with judge.active():
        judge.train()
        for numbers, ids, attention, spans in states:
            logits = _end_logits(judge, ids, attention, spans)
            out = discriminator_loss(logits, agent[numbers].to(device), expert[numbers].to(device))
            (out.loss / item.pairs).backward()
            total += float(out.loss.detach())
    rewards = torch.zeros(len(agent))
    with judge.active(), torch.no_grad():
        judge.eval()
        for numbers, ids, attention, spans in states:
            rewards[numbers] = expert_is_high_reward(
                _end_logits(judge, ids, attention, spans)
            ).cpu()
    [means] = inverse.group_means([item], [agent], [rewards])
    advantages = _whitened(item, rewards - means)
    model.eval()
    with torch.no_grad():
        old = [_token_log_probs(model, *state[1:])[0].detach() for state in states]
    model.train()
    value = 0.0
    for (numbers, ids, attention, spans), before in zip(states, old, strict=True):
        log_probs, entropies, of_action = _token_log_probs(model, ids, attention, spans)
        of = numbers[of_action.cpu()]
        if not float(agent[of].sum()):
            continue
        step = ppo_loss(
            log_probs, before, advantages[of].to(device), agent[of].to(device),
            entropies, clip=PPO.clip, kl=PPO.kl, entropy=PPO.entropy,
        )  # fmt: skip
        (step.loss / item.draws).backward()
        value += float(step.loss.detach())
    return {
        "discriminator": total / item.pairs,
        "ppo": value / item.draws,
        "tokens": float(sum(int(state[2].sum()) for state in states)),
    }


def _whitened(item: Practice, advantages: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the drawn tokens, as `actor_critic.whitened` does."""
    tree = item.tree
    sizes = [end - start for start, end in tree.replies] + [len(b.ids) for b in tree.branches]
    weights = torch.tensor(item.agent) * torch.tensor(sizes)
    mean = (weights * advantages).sum() / weights.sum()
    deviation = ((weights * (advantages - mean) ** 2).sum() / weights.sum()).sqrt()
    return (advantages - mean) * (0.0 if deviation < 1e-6 else 1 / deviation)


State = tuple[Tensor, Tensor, Tensor, list[tuple[int, int]]]
"""Action numbers [n]; token ids and attention mask [n, longest]; each action's span."""


def _states(item: Practice) -> list[State]:
    tree, states = item.tree, []
    for step, (start, end) in enumerate(tree.replies):
        actions = {step: tree.ids[start:end]}
        for number, branch in enumerate(tree.branches):
            if branch.step == step:
                actions[len(tree.replies) + number] = branch.ids
        rows = [[*tree.ids[:start], *ids] for ids in actions.values()]
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        attention = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        spans = [(start, len(row)) for row in rows]
        states.append((torch.tensor(list(actions)), padded, attention, spans))
    return states


def _end_logits(
    judge: Discriminator, ids: Tensor, attention: Tensor, spans: list[tuple[int, int]]
) -> Tensor:
    """`logit_agent_is_high` [n], read at each action's end."""
    device = judge.head.weight.device
    ends = torch.tensor([end - 1 for _, end in spans], device=device)
    body = judge.backbone.get_base_model().model
    hidden = body(
        input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False
    ).last_hidden_state
    return judge.head(hidden[torch.arange(len(ends)), ends].float()).squeeze(-1)


def _token_log_probs(
    model: Any, ids: Tensor, attention: Tensor, spans: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies [P] of the actions' tokens, and each one's row."""
    device = model.get_input_embeddings().weight.device
    rows = [(r, t) for r, (start, end) in enumerate(spans) for t in range(start, end)]
    row, place = torch.tensor(rows, device=device).unbind(1)
    base = model.get_base_model()
    hidden = base.model(
        input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False
    ).last_hidden_state
    chances = base.lm_head(hidden[row, place - 1]).float().log_softmax(-1)
    targets = ids.to(device)[row, place]
    log_probs = chances.gather(1, targets[:, None])[:, 0]
    return log_probs, -(chances.exp() * chances).sum(-1), row
