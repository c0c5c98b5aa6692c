"""The expert in the middle of an episode: plans tried out in a copy of the state.

The simulator cannot be copied, but it is deterministic: a second one in the same Java process,
which repeats the episode's actions, is a copy. In it are tried, each in a new copy,

1. the plan from the reset, from the first of its actions that was not taken yet, in the room where
   it goes on;
2. our plans for the task (they begin by looking);
3. the plan from the reset, all of it: the parser ignores what makes no sense any more;
4. upstream's path.

The first that is perfect is taken, else the best, and from where it leads they are all tried again.
Where none adds to the score within the steps left, the state is said to be lost; as the plans are
few, there may be another way out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from stepagent.envs.core import Plan as Steps
from stepagent.envs.scienceworld import expert, thoughts
from stepagent.envs.scienceworld.gateway import JavaError
from stepagent.envs.scienceworld.jvm import Simulator
from stepagent.envs.scienceworld.plans import upstream
from stepagent.envs.scienceworld.playthrough import Plan, PlanEnded, Playthrough

CANCEL = "look around"
"""Cancels a numbered question, as anything does that is no number."""


@dataclass(frozen=True)
class Situation:
    """A task and what was done in it since its start."""

    task_id: str
    simplifications: tuple[str, ...]
    actions: tuple[str, ...] = ()
    """As they were sent to the simulator."""
    asked: bool = False
    """The last one was answered by a numbered question."""

    def play(self, simulator: Simulator, limit: int) -> Playthrough:
        """A copy of the state, in which `limit` actions may be taken."""
        task, number = self.task_id.rsplit("/", 1)
        return Playthrough(
            simulator, task, int(number), self.simplifications, limit, before=self.actions
        )


@dataclass(frozen=True)
class _Trial:
    """What a plan did in a copy of the state."""

    actions: tuple[str, ...] = ()
    gain: float = 0.0
    """What it adds to the score."""
    goal: str = ""
    perfect: bool = False


def plan(simulator: Simulator, situation: Situation, limit: int) -> Steps:
    """(thought, action) pairs that reach the best score known from here, in at most `limit` steps;
    empty where none adds to the score. `simulator` is one to try plans in.

    Raises SimulatorError if the Java process fails.
    """
    begin, goal = len(situation.actions), ""
    while True:
        trial = _best(simulator, situation, limit)
        if not trial.actions:
            break
        goal, limit = trial.goal, limit - len(trial.actions)
        situation = replace(situation, actions=(*situation.actions, *trial.actions), asked=False)
        if trial.perfect:
            break
    spoken = thoughts.of(situation.task_id, goal, situation.actions)
    return list(zip(spoken, situation.actions, strict=True))[begin:]


def _best(simulator: Simulator, situation: Situation, limit: int) -> _Trial:
    """The first perfect one of the plans to try, else that which adds most to the score."""
    best = _Trial()
    for answers in (("0",), (CANCEL,)) if situation.asked else ((),):
        for candidate in _candidates(simulator, situation):
            trial = _try(partial(situation.play, simulator, limit), answers, candidate)
            if trial.gain > best.gain:
                best = trial
            if best.perfect:
                return best
    return best


def _try(copy: Callable[[], Playthrough], answers: tuple[str, ...], plan: Plan) -> _Trial:
    """Plays a plan in a copy of the state. Where the parser did not know some of its actions, they
    may have taken time: then it is played again without them."""
    while True:
        play = copy()
        before = play.score
        with suppress(PlanEnded, JavaError):
            for answer in answers:
                play.answer(answer)
            plan(play)
        if play.score <= before:
            return _Trial()
        if not play.unknown_actions:
            return _Trial(play.actions, play.score - before, play.goal, play.score >= 1)
        plan = upstream.replay(play.actions[len(answers) :])


def _candidates(simulator: Simulator, situation: Situation) -> Iterator[Plan]:
    task = situation.task_id.rsplit("/", 1)[0]
    road = [action for _, action in expert.plan(situation.task_id, situation.simplifications)]
    done = 0
    for action in situation.actions:
        done += done < len(road) and action == road[done]
    yield upstream.replay([*_room(road[:done]), *road[done:]])
    yield from expert.OWN_PLANS.get(task, ())
    if done:
        yield upstream.replay(road)
    path = expert.gold_path(simulator, situation.task_id, situation.simplifications)
    yield from upstream.plans(path, situation.simplifications)


def _room(actions: Sequence[str]) -> list[str]:
    """The way back to the room where a plan is after these actions."""
    return [action for action in actions if action.startswith("teleport to ")][-1:]
