"""Replies from the trainer's own model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stepagent.agents.transformers import TransformersAgent
from stepagent.training.policy import Policy
from stepagent.training.sampler.interface import Job, Replies, Sampler
from stepagent.training.trees.sampling import Sampling, practices


class LocalSampler(Sampler):
    """Draws where the policy is trained; each trajectory is read once, and short ones are practised
    in together (`trees.sampling`)."""

    def publish(self, policy: Policy) -> str:
        self._policy = policy
        return "local"

    def draw(self, jobs: Iterable[Job], sampling: Sampling) -> Iterator[Replies]:
        pairs = ((job.encoded, job.seed) for job in jobs)
        return practices(self.policy.model, pairs, sampling)

    def player(self, **options: Any) -> TransformersAgent:
        return TransformersAgent(self.policy.model, self.policy.tokenizer, **options)
