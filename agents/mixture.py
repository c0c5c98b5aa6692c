"""An agent that hands over to the environment's expert now and then: DAgger's mixture of policies.

π = β π* + (1 - β) π_agent        (Ross et al., 2011), drawn anew at every step
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from stepagent.agents.core import Agent, Turn
from stepagent.envs.react import render


class MixtureAgent(Agent):
    """`agent`, or with probability `share` (β) at each step the expert in the state reached so far.

    Who acts depends on (`Turn.seed`, turn) alone. Where the expert has nothing to say (the state is
    lost), the agent acts.
    """

    def __init__(self, agent: Agent, share: float):
        self.agent, self.share = agent, share
        self.name, self.style = agent.name, agent.style
        self.batch_size, self.streaming = agent.batch_size, agent.streaming
        self._ready: list[tuple[Hashable, str | Exception]] = []

    def act(self, turns: Sequence[Turn]) -> list[str]:
        replies = [self._expert_reply(turn) for turn in turns]
        own = [turn for turn, reply in zip(turns, replies, strict=True) if reply is None]
        rest = iter(self.agent.act(own) if own else [])
        return [next(rest) if reply is None else reply for reply in replies]

    def submit(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            reply = self._expert_reply(turn)
            if reply is None:
                self.agent.submit([turn])
            else:
                self._ready.append((turn.key, reply))

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        return self.agent.poll()

    def _expert_reply(self, turn: Turn) -> str | None:
        number = sum(message["role"] == "assistant" for message in turn.messages)
        if np.random.default_rng([turn.seed % 2**63, number, 21]).random() >= self.share:
            return None
        pair = turn.env.expert_action()
        return render(*pair, self.style) if pair else None

    def forget(self, key: Hashable) -> None:
        self._ready = [item for item in self._ready if item[0] != key]
        self.agent.forget(key)

    def fingerprint(self) -> dict[str, str]:
        return {**self.agent.fingerprint(), "expert_acts": str(self.share)}

    def statistics(self) -> dict[str, float]:
        return self.agent.statistics()

    def close(self) -> None:
        self.agent.close()
