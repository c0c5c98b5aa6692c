"""Replies from the trainer's own model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stepagent.agents.transformers import TransformersAgent
from stepagent.training.policy import Policy
from stepagent.training.sampler.interface import Job, Sampler
from stepagent.training.trees.sampling import Replies, Sampling, practices, together


class LocalSampler(Sampler):
    """Draws where the policy is trained; each trajectory is read once, and short ones are practised
    in together (`trees.sampling`)."""

    def publish(self, policy: Policy) -> str:
        self._policy = policy
        return "local"

    def draw(self, jobs: Sequence[Job], sampling: Sampling) -> Iterator[Replies]:
        model = self.policy.model
        for numbers in together(model, [job.encoded for job in jobs], sampling):
            group = [jobs[i] for i in numbers]
            if all(job.done for job in group):
                continue
            pairs = [(job.encoded, job.seed) for job in group]
            drawn = practices(model, pairs, sampling)
            yield from (replies for job, replies in zip(group, drawn, strict=True) if not job.done)

    def player(self, **options: Any) -> TransformersAgent:
        return TransformersAgent(self.policy.model, self.policy.tokenizer, **options)
