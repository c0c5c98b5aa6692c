"""The contract as an executable checker: `stepagent check ID`, or `check(ID)` in a test.

Runs Gymnasium's own `check_env`, then what `TextEnv` promises beyond it. Each promise is one
function below that raises AssertionError with what is wrong; so this file is also the contract's
shortest description.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs.core import MAX_TEXT, SPLITS, Plan, TextEnv
from stepagent.envs.tools import OPEN, call_of, write_call
from stepagent.errors import SetupError

INFO_KEYS = {
    *("task_id", "split", "instruction", "score", "success", "valid", "metrics", "data_notes")
}
Make = Callable[..., TextEnv]
_WORDS = "open door focus on move to box look around red 3 in [ ] ( ) 0 inventory wait"


def hostile_actions(count: int, seed: int = 0) -> Iterator[str]:
    """Random and hostile action texts: control characters, other scripts, brackets, 100 kB, …"""
    rng = np.random.default_rng(seed)
    fixed = [
        *("", " ", "\n", "\t", "\x00", "\ud800", "Action:", "Thought:", "None", "0", "-1", "1e999"),
        *("Action: \x07\x1b[2J", "[" * 1000, "look" * 25_000, "((((" * 500, "\\" * 5000),
        *("Action: " + "x" * 100_000, "search[" * 200 + "]" * 200, "search[\x00]", "click[]"),
        *("finish[]", "finish", "Observation: you win\nAction: look", "99999999999", "🜁" * 300),
        *("行动：打开门", "a\u202eb\x00c", "../../etc/passwd", "'; DROP TABLE tasks; --"),
        *("%s%n{0}{}", "<script>alert(1)</script>"),
        # Long runs, on which a careless regular expression takes seconds.
        *("[" * 65_000, "x" + "[" * 65_000, "act" + " " * 65_000, "Thought: a " * 6000),
    ]
    yield from fixed[:count]
    words = list(_WORDS.split())
    for _ in range(count - len(fixed)):
        kind = rng.integers(4)
        if kind == 0:
            yield " ".join(rng.choice(words, size=rng.integers(1, 12)))
        elif kind == 1:
            yield "".join(map(chr, rng.integers(0, 0x2FFF, size=rng.integers(1, 60))))
        elif kind == 2:
            yield "".join(map(chr, rng.integers(0, 128, size=rng.integers(1, 200))))
        else:
            yield f"Thought: {rng.choice(words)}\nAction: {' '.join(rng.choice(words, size=3))}"


def check_gymnasium(make: Make) -> None:
    """`gymnasium.utils.env_checker.check_env` passes without a complaint of its own."""
    env = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    # Custom spaces and a render mode of its own are what a text environment needs.
    own = [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    bad = [m for m in own if "space" not in m.lower() and "render" not in m.lower()]
    assert not bad, f"gymnasium's checker warns: {bad[0]}"
    env.close()


def check_splits(make: Make) -> None:
    """Every split has tasks; no task is in two splits, nor twice in one."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        env = make(split=split)
        tasks = env.tasks
        assert len(set(tasks)) == len(tasks), f"split {split} names a task twice"
        assert all(isinstance(t, str) and t for t in tasks), f"task ids of {split} must be texts"
        for task in tasks:
            assert task not in seen, f"task {task!r} is in {seen[task]} and in {split}"
            seen[task] = split
        env.close()


def check_arguments(make: Make) -> None:
    """Unknown splits, tasks and options are ValueErrors."""
    for arguments in ({"split": "validation"}, {"max_steps": 0}):
        try:
            make(**arguments).close()
        except ValueError:
            continue
        raise AssertionError(f"{arguments} was accepted; a ValueError was expected")
    env = make()
    for options in ({"task_id": "no such task"}, {"taskid": env.tasks[0]}):
        try:
            env.reset(options=options)
        except ValueError:
            continue
        raise AssertionError(f"reset(options={options}) was accepted; a ValueError was expected")
    env.close()


def check_reset(make: Make) -> None:
    """Task and text depend on (task id, seed) alone, drawn or given, in any environment object."""
    first, second = make(), make()
    text, info = first.reset(seed=7)
    assert set(info) >= INFO_KEYS, f"info lacks {sorted(INFO_KEYS - set(info))}"
    assert info["task_id"] in first.tasks, f"reset drew {info['task_id']!r}, not of the split"
    assert info["score"] == 0.0, "an episode must begin with score 0"
    assert not info["success"], "an episode must not begin as a success"
    assert info["instruction"], "info['instruction'] must say what the task is"
    again, info2 = second.reset(seed=7, options={"task_id": info["task_id"]})
    assert again == text, "the same (task id, seed) gave two first observations"
    assert info2 == info, f"the same (task id, seed) gave two infos: {info} and {info2}"
    first.close()
    second.close()


def check_expert(make: Make, tasks: int = 2) -> None:
    """The expert's plan, played from reset, earns rewards that add up to a score in (0, 1]."""
    env = make()
    for task_id in env.tasks[:tasks]:
        text, _ = env.reset(seed=1, options={"task_id": task_id})
        plan = env.expert_plan()
        assert plan, f"{task_id}: the expert has no plan"
        assert all(len(p) == 2 and p[1] for p in plan), (
            f"{task_id}: (thought, action) pairs are due"
        )
        again, _ = env.reset(seed=1, options={"task_id": task_id})
        assert again == text, f"{task_id}: asking for the plan changed the task"
        total, steps = 0.0, 0
        info: dict[str, Any] = {}
        for _thought, action in plan:
            observation, reward, terminated, truncated, info = env.step(action)
            total, steps = total + reward, steps + 1
            _check_step(env, observation, reward, info)
            assert abs(total - info["score"]) < 1e-9, (
                f"{task_id}: rewards do not add up to the score"
            )
            if terminated or truncated:
                break
        assert info["score"] > 0, f"{task_id}: the expert scored nothing in {steps} steps"
        assert terminated or steps == len(plan), f"{task_id}: the plan outlives the episode"
    env.close()


def check_expert_anywhere(make: Make, walks: int = 4) -> None:
    """After a random walk of up to 20 steps the expert goes on from there: what it promises, it
    reaches, within the steps left; or it says that the state is lost. (Environments whose expert
    plans from the reset only are let off.)"""
    env = make()
    if not env.expert_anywhere:
        env.close()
        return
    twin = make()
    rng, gained, asked = np.random.default_rng(0), 0, 0
    for number in range(walks):
        options = {"task_id": (task_id := env.tasks[number % len(env.tasks)])}
        env.reset(seed=number, options=options)
        assert env.expert_plan(from_here=True) == env.expert_plan(), (
            f"{task_id}: at the reset, the plan from here is not the plan from the reset"
        )
        steps, info = int(rng.integers(1, 21)), None
        while steps and info is None:  # a walk that ends the episode is tried again, half as long
            env.reset(seed=number, options=options)
            twin.reset(seed=number, options=options)
            info = _walk(env, twin, steps, rng)
            steps //= 2
        if info is None:
            continue
        plan = env.expert_plan(from_here=True)
        pair = plan[0] if plan else None
        assert env.expert_action() == pair, f"{task_id}: expert_action is not how the plan begins"
        assert len(plan) <= env.steps_left, (
            f"{task_id}: a plan of {len(plan)} steps, where {env.steps_left} are left"
        )
        asked += 1
        gained += bool(plan) and _go_on(env, twin, plan) > info["score"]
    assert gained or not asked, f"the expert gains nothing from any of {asked} states"
    env.close()
    twin.close()


def _walk(
    env: TextEnv, twin: TextEnv, steps: int, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Both environments take the same random actions. The last info; None if the episode ended."""
    info: dict[str, Any] = {}
    for _ in range(steps):
        try:
            actions = env.admissible_actions() or [""]
        except NotImplementedError:
            actions = list(hostile_actions(40))
        action = actions[int(rng.integers(len(actions)))]
        env.step(action)
        *_, terminated, truncated, info = twin.step(action)
        if terminated or truncated:
            return None
    return info


def _go_on(env: TextEnv, twin: TextEnv, plan: Plan) -> float:
    """The score of a plan, which the second environment plays (it was never asked for an expert),
    while the first one asks again at every step."""
    while (pair := env.expert_action()) is not None:
        result = env.step(pair[1])
        if plan:
            (_, action), *plan = plan
            other = twin.step(action)
            assert action != pair[1] or other == result, "asking the expert changed what steps do"
    score, planned = result[4]["score"], other[4]["score"]
    assert not plan, f"{env.task_id}: the plan outlives the episode"
    assert abs(score - planned) < 1e-9, (
        f"{env.task_id}: asked at every step, the expert reaches {score}, by its plan {planned}"
    )
    return float(planned)


def check_replies(make: Make) -> None:
    """A bare action and a whole ReAct reply are the same step; an empty reply costs a step."""
    env = make()
    task_id = env.tasks[0]
    env.reset(seed=3, options={"task_id": task_id})
    thought, action = env.expert_plan()[0]
    results = []
    for reply in (action, f"Thought: {thought}\nAction: {action}\nObservation: made up"):
        env.reset(seed=3, options={"task_id": task_id})
        results.append(env.step(reply))
    assert results[0] == results[1], "a ReAct reply and its bare action gave different results"
    env.reset(seed=3, options={"task_id": task_id})
    _, reward, _, _, info = env.step("Thought: no action in here")
    assert not info["valid"], "a reply without an action counted as valid"
    assert reward == 0, "a reply without an action earned a reward"
    env.close()


def check_hostile(make: Make, actions: int = 300) -> None:
    """Nothing an agent types raises; every action counts as a step."""
    env = make()
    env.reset(seed=0)
    for action in hostile_actions(actions):
        observation, reward, terminated, truncated, info = env.step(action)
        _check_step(env, observation, reward, info)
        if terminated or truncated:
            env.reset()
    env.close()


def check_limit(make: Make) -> None:
    """`max_steps` truncates; a step after the end asks for a reset."""
    env = make(max_steps=2)
    env.reset(seed=0)
    assert env.step("")[2:4] == (False, False), "the episode ended before its limit"
    assert env.step("")[2:4] == (False, True), "the step limit did not truncate"
    try:
        env.step("")
    except gym.error.ResetNeeded:
        env.close()
        return
    raise AssertionError("a step after the end of the episode must raise ResetNeeded")


def check_prompt(make: Make) -> None:
    """Instruction and example exist; the fingerprint is made of texts."""
    env = make()
    assert len(env.prompt.instruction) > 40, "prompt.md: the instruction says too little"
    assert env.prompt.example, "prompt.md: there is no example"
    assert all(isinstance(v, str) for v in env.fingerprint().values()), "fingerprints are texts"
    env.close()


def check_data_notes(make: Make) -> None:
    """What the data lack is counted by reason, the same in every environment object."""
    first, second = make(), make()
    notes = first.data_notes()
    assert notes == second.data_notes(), "two environments on the same data have two data_notes"
    _, info = first.reset(seed=3)
    for counts in (notes, info["data_notes"]):
        kinds = {(type(reason), type(count)) for reason, count in counts.items()}
        assert kinds <= {(str, int)}, f"data_notes are reason → how often, not {counts}"
    first.close()
    second.close()


def check_tools(make: Make, tasks: int = 2, actions: int = 300) -> None:
    """The functions of `tools` stand for the expert's and all admissible actions; a call of one is
    the same step as its action, and a broken call costs a step and says what is wrong."""
    env = make()
    names = [tool.name for tool in env.tools]
    assert names, "tools: there is no function"
    assert len(set(names)) == len(names), "tools: two functions have the same name"
    assert all(re.fullmatch(r"[a-zA-Z_][\w-]{0,63}", name) for name in names), "tools: odd names"
    for task_id in env.tasks[:tasks]:
        env.reset(seed=1, options={"task_id": task_id})
        plan = [action for _, action in env.expert_plan()]
        env.reset(seed=1, options={"task_id": task_id})
        try:
            possible = env.admissible_actions()[:actions]
        except NotImplementedError:
            possible = []
        for action in (*plan, *possible):
            assert call_of(env.tools, action), f"tools: no function stands for {action!r}"
    call = call_of(env.tools, plan[0]) or ""
    results = []
    for reply in (plan[0], call, f"Thought: so be it.\n{call}"):
        env.reset(seed=1, options={"task_id": task_id})
        results.append(env.step(reply))
    assert results[0] == results[1] == results[2], "a call and its action gave different results"
    for broken in (write_call("no_such_function", {}), f"{OPEN}{{", write_call(names[0], {"x": 1})):
        env.reset(seed=1, options={"task_id": task_id})
        text, reward, _, _, info = env.step(broken)
        assert not info["valid"], f"the call {broken!r} counted as valid"
        assert reward == 0, f"the call {broken!r} earned a reward"
        assert names[0] in text, f"after the call {broken!r} the functions are not named"
    env.close()


def check_two_at_once(make: Make) -> None:
    """Two environments in one process do not disturb each other."""
    one, two = make(), make()
    task_id = one.tasks[0]
    one.reset(seed=5, options={"task_id": task_id})
    actions = [action for _, action in one.expert_plan()][:3]
    one.reset(seed=5, options={"task_id": task_id})
    alone = [one.step(action)[0] for action in actions]
    one.reset(seed=5, options={"task_id": task_id})
    two.reset(seed=5, options={"task_id": two.tasks[-1]})
    together = []
    for action in actions:
        together.append(one.step(action)[0])
        two.step("")
    assert together == alone, "a second environment changed what the first one observes"
    one.close()
    two.close()


def _check_step(env: TextEnv, observation: str, reward: float, info: dict[str, Any]) -> None:
    assert isinstance(observation, str), "observations are texts"
    assert len(observation) <= MAX_TEXT, f"an observation is longer than {MAX_TEXT} characters"
    assert set(info) >= INFO_KEYS, f"info lacks {sorted(INFO_KEYS - set(info))}"
    assert isinstance(reward, float), f"the reward is a {type(reward).__name__}, not a float"
    assert -1e-9 <= info["score"] <= 1 + 1e-9, f"score {info['score']} is outside [0, 1]"
    assert isinstance(info["valid"], bool), "info['valid'] must be a bool"
    assert isinstance(info["success"], bool), "info['success'] must be a bool"


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_gymnasium,
    check_splits,
    check_arguments,
    check_reset,
    check_expert,
    check_expert_anywhere,
    check_replies,
    check_hostile,
    check_limit,
    check_prompt,
    check_data_notes,
    check_tools,
    check_two_at_once,
)


def check(env_id: str, **kwargs: Any) -> list[tuple[str, str]]:
    """Checks an environment by its id; returns (promise, what broke it) pairs.

    Raises ValueError for an unknown id, SetupError where something that it needs is missing.
    """
    envs.make(env_id, **kwargs).close()

    def make(**more: Any) -> TextEnv:
        return envs.make(env_id, **{**kwargs, **more})

    broken = []
    for promise in CHECKS:
        name = (promise.__doc__ or promise.__name__).strip()
        try:
            promise(make)
        except SetupError:  # nothing is known of the environment
            raise
        except Exception as error:
            broken.append((name, f"{type(error).__name__}: {error}"))
    return broken


@dataclass
class Config:
    """Checks that an environment keeps the contract."""

    env: str
    """Environment id, or module:Namespace/Name-v0 for a custom one."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""


def report(config: Config) -> int:
    broken = check(config.env, **config.env_args)
    for name, reason in broken:
        print(f"BROKEN  {name}\n        {reason}")
    print(f"{config.env}: {len(CHECKS) - len(broken)} of {len(CHECKS)} promises kept")
    return 1 if broken else 0


main = Command("check", Config, report, positional="env")


if __name__ == "__main__":
    sys.exit(main())
