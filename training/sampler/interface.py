"""What a sampler does. Three callers need one: practice (`methods.practice`), the agent's own
episodes (`methods.rollouts`, `methods.branching`) and scoring (`runs.training_run`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stepagent.agents.encoded import Encoded
from stepagent.agents.transformers import TransformersAgent
from stepagent.training.policy import Policy
from stepagent.training.trees.sampling import Replies, Sampling


@dataclass(frozen=True)
class Job:
    """A trajectory in whose states replies are to be drawn."""

    encoded: Encoded
    seed: int
    """Each reply depends on it, on its state's number and on its own number k."""
    done: bool = False
    """Its replies are there already, and are not drawn again. It is given for its neighbours: those
    that are drawn in one go stay the same when a run goes on with as many processes, and with them
    the last digits of their logits."""


class Sampler(ABC):
    """Draws replies of the policy that was published last."""

    _policy: Policy | None = None

    is_remote = False
    """Whether replies are drawn elsewhere, so that the trainer can do other work meanwhile."""

    @abstractmethod
    def publish(self, policy: Policy) -> str:
        """From now on replies are those of this policy, as it is now; the name of that version.

        Costs little where the version is published already. Any process of a run may call it.
        """

    @property
    def policy(self) -> Policy:
        """The one that was published last."""
        assert self._policy, "no policy is published"
        return self._policy

    def withdraw(self) -> None:
        """Lets go of the policy that was published last; nothing is drawn before the next one."""
        self._policy = None

    @abstractmethod
    def draw(self, jobs: Sequence[Job], sampling: Sampling) -> Iterator[Replies]:
        """The replies of each job that is not `done`, in order; several are under way at once."""

    @abstractmethod
    def player(self, **options: Any) -> TransformersAgent:
        """The published policy as an agent; the options are those of `TransformersAgent`."""

    def close(self) -> None:
        """Frees what the sampler holds. Safe to call twice."""
