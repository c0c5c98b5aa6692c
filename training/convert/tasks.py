"""Which environment and task a conversation belongs to.

Ids and paths are read as their projects write them; WebShop's and the encyclopedia's tasks are also
looked up by the instruction or question that the first observation shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stepagent import envs
from stepagent.envs import ENTRY_POINTS, SPLITS, TextEnv
from stepagent.envs.core import checksum
from stepagent.envs.scienceworld import data as scienceworld
from stepagent.training.convert.conversations import Conversation

ALFWORLD, SCIENCEWORLD = "stepagent/ALFWorld-v0", "stepagent/ScienceWorld-v0"
WEBSHOP, HOTPOTQA = "stepagent/WebShop-v0", "stepagent/HotpotQA-v0"

ETO_TASKS = (
    "boil",
    "change-the-state-of-matter-of",
    "freeze",
    "melt",
    "measure-melting-point-known-substance",
    "measure-melting-point-unknown-substance",
    "use-thermometer",
    "power-component",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity",
    "test-conductivity-of-unknown-substances",
    "find-animal",
    "find-living-thing",
    "find-non-living-thing",
    "find-plant",
    "grow-fruit",
    "grow-plant",
    "chemistry-mix",
    "chemistry-mix-paint-secondary-color",
    "chemistry-mix-paint-tertiary-color",
    "lifespan-longest-lived",
    "lifespan-longest-lived-then-shortest-lived",
    "lifespan-shortest-lived",
    "identify-life-stages-1",
    "identify-life-stages-2",
    "inclined-plane-determine-angle",
    "inclined-plane-friction-named-surfaces",
    "inclined-plane-friction-unnamed-surfaces",
    "mendelian-genetics-known-plant",
    "mendelian-genetics-unknown-plant",
)
"""ScienceWorld's tasks in the order in which ETO numbers them."""
AGENTGYM_TASKS = (
    "boil",
    "melt",
    "freeze",
    "change-the-state-of-matter-of",
    "use-thermometer",
    "measure-melting-point-known-substance",
    "measure-melting-point-unknown-substance",
    "power-component",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity",
    "test-conductivity-of-unknown-substances",
    "find-living-thing",
    "find-non-living-thing",
    "find-plant",
    "find-animal",
    "chemistry-mix",
    "chemistry-mix-paint-secondary-color",
    "chemistry-mix-paint-tertiary-color",
    "lifespan-longest-lived",
    "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived",
    "identify-life-stages-1",
    "identify-life-stages-2",
)
"""ScienceWorld's tasks in AgentGym, which numbers all their variations through."""

_GAME = re.compile(r"(?<!\w)(\w++-\w++-\w++-\w++-\d++)[/_-](trial_T\d+_\d+_\d+)")
_TRIAL = re.compile(r"trial_T\d+_\d+_\d+")
_BUYING = re.compile(r"Instruction:?\s*+(?:\[SEP\]\s*+)?+((?:\S|[^\S\n]++)+?)\s*(?:\[SEP\]|\n|\Z)")
_PRICE = re.compile(r",? and price lower than [\d.]+ dollars.*")
_SIGNS = (
    (WEBSHOP, re.compile(r"web ?shopp?ing|\[SEP\]|\bclick\[buy now\]", re.IGNORECASE)),
    (ALFWORLD, re.compile(r"Interact with a household|You are in the middle of a room\.")),
    (SCIENCEWORLD, re.compile(r"scientific experiment|for science world|This room is called")),
)


def environment_of(conversation: Conversation) -> str:
    """The environment's id, by what the record names, the texts and the actions; "" where none
    fits."""
    if conversation.env:
        return conversation.env
    name = conversation.task.lower()
    for prefix, env in (
        ("webshop", WEBSHOP),
        ("alfworld", ALFWORLD),
        ("sciworld", SCIENCEWORLD),
        ("scienceworld", SCIENCEWORLD),
        ("hotpotqa", HOTPOTQA),
    ):
        if name.startswith(prefix):
            return env
    if _TRIAL.search(conversation.task):
        return ALFWORLD
    last = conversation.steps[-1]
    text = "\n".join((conversation.context, conversation.opening, last.observation, last.action))
    for env, sign in _SIGNS:
        if sign.search(text):
            return env
    actions = [step.action for step in conversation.steps if step.action]
    if all(re.match(r"(search|lookup|finish)\[", action, re.IGNORECASE) for action in actions):
        return HOTPOTQA
    return ""


@dataclass(frozen=True)
class Task:
    """A task of an environment."""

    split: str
    task_id: str


class TaskIndex:
    """The tasks of one environment and its playable instances, made when first needed.

    Parameters
    ----------
    env: id of the environment.
    arguments: its arguments, such as `data`.

    The methods raise ValueError, OSError or ImportError where the environment cannot be made.
    """

    def __init__(self, env: str, arguments: dict[str, Any]):
        self.env = env
        self.arguments = dict(arguments)
        if env == SCIENCEWORLD:
            self.arguments.setdefault("task_set", "all")

    @cached_property
    def instances(self) -> dict[str, TextEnv]:
        """The environment of each split that has tasks."""
        instances: dict[str, TextEnv] = {}
        problems = []
        for split in SPLITS:
            try:
                instance = envs.make(self.env, **{**self.arguments, "split": split})
                assert instance.tasks
                instances[split] = instance
            except ValueError as error:
                problems.append(str(error))
        if not instances:
            raise ValueError(problems[0])
        return instances

    @cached_property
    def _splits(self) -> dict[str, str]:
        """Task id → its split."""
        return {task: split for split, env in self.instances.items() for task in env.tasks}

    @cached_property
    def _trials(self) -> dict[str, str]:
        return {task.rsplit("/", 1)[-1]: task for task in self._splits}

    @cached_property
    def _texts(self) -> dict[str, str]:
        """Instruction or question → task id."""
        texts: dict[str, str] = {}
        for env in self.instances.values():
            if self.env == WEBSHOP:
                pairs = [(env.goal(task).instruction, task) for task in env.tasks]  # type: ignore[attr-defined]
                texts |= {_normal(_PRICE.sub("", text)): task for text, task in pairs}
            else:
                questions = env.questions.values()  # type: ignore[attr-defined]
                pairs = [(question.text, question.task_id) for question in questions]
            texts |= {_normal(text): task for text, task in pairs}
        return texts

    def find(self, conversation: Conversation, layout: str) -> Task | None:
        """The task that the conversation is about; None where the environment has none such."""
        if conversation.task in self._splits:
            return self._task(conversation.task)
        task: str | None = None
        if self.env == ALFWORLD:
            if trial := _TRIAL.search(conversation.task):
                task = self._trials.get(trial.group())
        elif self.env == SCIENCEWORLD:
            task = science_task(conversation.task, layout)
        elif self.env == WEBSHOP:
            instruction = _BUYING.search(f"{conversation.opening}\n{conversation.context}")
            text = instruction.group(1) if instruction else ""
            task = self._texts.get(_normal(text)) or self._texts.get(_normal(_PRICE.sub("", text)))
        elif ENTRY_POINTS.get(self.env, "").startswith("stepagent.envs.wikipedia"):
            task = self._texts.get(_normal(conversation.opening))
        return self._task(task) if task in self._splits else None

    def _task(self, task_id: str | None) -> Task:
        assert task_id is not None
        return Task(self._splits[task_id], task_id)

    def close(self) -> None:
        for env in self.__dict__.get("instances", {}).values():
            env.close()


def derived_id(conversation: Conversation, env: str, layout: str) -> str:
    """An id for a task that no environment at hand has: in our form where the record's own name
    says it, else that name, else a checksum of the first observation."""
    if env == ALFWORLD and (game := _GAME.search(conversation.task)):
        return "/".join(game.groups())
    own = science_task(conversation.task, layout) if env == SCIENCEWORLD else None
    return own or conversation.task or f"{layout}/{checksum(conversation.opening)}"


def derived_split(conversation: Conversation) -> str:
    """The split that a path of ALFWorld names; else train, where people's trajectories are from."""
    folders = {"valid_seen": "dev", "valid_unseen": "test"}
    return next((s for folder, s in folders.items() if folder in conversation.task), "train")


def science_task(name: str, layout: str) -> str | None:
    """ScienceWorld's task id: of `find-plant/3`, ETO's `14_3` or AgentGym's `sciworld_1234`."""
    own = re.search(r"(?<![a-z0-9-])[0-9-]*+([a-z][a-z0-9-]++)[/_](\d+)\Z", name)
    if own and own.group(1) in scienceworld.TASKS:
        return f"{own.group(1)}/{own.group(2)}"
    if layout == "agentgym":
        return (
            _agentgym_task(int(m.group(1))) if (m := re.search(r"(?<!\d)(\d+)\Z", name)) else None
        )
    eto = re.search(r"(?:\A|\D)(\d+)[_-](\d+)\Z", name)
    if not eto or int(eto.group(1)) >= len(ETO_TASKS):
        return None
    return f"{ETO_TASKS[int(eto.group(1))]}/{int(eto.group(2))}"


def _agentgym_task(number: int) -> str | None:
    for task in AGENTGYM_TASKS:
        if number < scienceworld.TASKS[task].end:
            return f"{task}/{number}"
        number -= scienceworld.TASKS[task].end
    return None


def _normal(text: str) -> str:
    return " ".join(text.removeprefix("Question:").lower().split())
