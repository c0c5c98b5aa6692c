"""NAT: negative-aware training (Wang et al., 2024).

After SFT the agent plays every task of the expert's trajectories. Its failures are not thrown away:
the untrained model is fine-tuned (eq. 3; settings of `sft`) on

    the expert's trajectories and the agent's successes, the prompt ending in `POSITIVE`
    the agent's failures, the prompt ending in `NEGATIVE`

and always prompted with `POSITIVE` afterwards, so that it can learn from failures what acting looks
like without imitating their end. The suffix stands behind the system message. Whoever runs the
policy has to give it too (`summary.json` has it under `prompt`, and
`eval.run --agent-args.suffix` takes it).

Deviations: of several equal sequences of actions on a task one is kept, as in `rft`.
"""

from __future__ import annotations

from dataclasses import replace

from stepagent.training import rollouts, sft
from stepagent.training.dataset import Sample
from stepagent.training.rft import check as check
from stepagent.training.rft import distinct, is_success
from stepagent.training.session import Session

NAME = "nat"
POSITIVE = "Solve the task: act so that its goal is reached."
NEGATIVE = "Fail the task: act so that its goal is not reached."


def learn(session: Session) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on successes and failures."""
    sft.learn(session)
    session.stage(NAME, lambda: _stage(session))
    session.style = replace(session.config.prompt, suffix=POSITIVE)
    if session.config.evaluation.every_iteration:
        session.score(NAME)


def _stage(session: Session) -> dict[str, float]:
    positive = replace(session.config.prompt, suffix=POSITIVE)
    negative = replace(session.config.prompt, suffix=NEGATIVE)
    played = rollouts.play(session, NAME, session.samples)
    good: list[Sample] = []
    bad: list[Sample] = []
    lost = 0
    for expert, row in zip(session.samples, played, strict=True):
        wins = [t for t in row if is_success(t, session.config.expert.min_reward)]
        losses = [t for t in row if not is_success(t, session.config.expert.min_reward)]
        again, too_long = rollouts.encode(session, [expert.trajectory], positive)
        good += [*again, *distinct(rollouts.encode(session, wins, positive)[0], expert)]
        lost += too_long
        bad += distinct(rollouts.encode(session, losses, negative)[0], expert)
    session.note(f"{NAME}: {len(good)} good trajectories (the expert's too), {len(bad)} bad ones")
    if lost:
        session.note(f"{NAME}: {lost} of the expert's are too long with the suffix, and left out")
    session.restart()
    sft.stage(session, NAME, [*good, *bad])
    return {"good": float(len(good)), "bad": float(len(bad))}
