"""The texts of pre-training: walks through the environments' train tasks, and the bundled pages.

A walk is an episode of `Walker`, which knows no task: it draws from the admissible actions. So no
document holds an action that an expert chose. Documents are collected in parts, each a file that is
whole or absent, and a part is a function of (source, seed, number) alone: a killed collection
resumes, and the corpus does not depend on how often it was killed.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stepagent import envs
from stepagent.agents.core import Agent, Turn
from stepagent.envs.react import Message, PromptStyle, render
from stepagent.envs.wikipedia import data
from stepagent.eval.rollout import run_episodes
from stepagent.files import open_file, write_text

PART = 64
"""Episodes of a part."""
_RELUCTANT = ("finish[", "click[buy now]", "focus on ")
"""Beginnings of actions that end an episode: rarely drawn, or most walks would have one step."""


class Walker(Agent):
    """Draws a verb, then an admissible action of that verb; now and then it types nonsense.

    With equal odds for each action the verbs with many objects would drown all others. Nonsense
    (one action in `1 / mistakes`) shows what an environment says to it. A reply is a bare action or
    has the word `Action:` before it, for a whole episode.
    """

    name = "walker"

    def __init__(self, mistakes: float = 0.05, batch_size: int = 8):
        self.mistakes, self.batch_size = mistakes, batch_size
        self.style = PromptStyle(instruction=False, example=False)

    def act(self, turns: Sequence[Turn]) -> list[str]:
        return [self._reply(turn) for turn in turns]

    def _reply(self, turn: Turn) -> str:
        number = sum(message["role"] == "assistant" for message in turn.messages)
        rng = np.random.default_rng([turn.seed % 2**63, number])
        style = PromptStyle(thoughts=turn.seed % 2 == 0)
        return render("", self._draw(sorted(set(turn.env.admissible_actions())), rng), style)

    def _draw(self, actions: list[str], rng: np.random.Generator) -> str:
        if rng.random() > self.mistakes:
            willing = [a for a in actions if not a.lower().startswith(_RELUCTANT)]
            actions = willing or actions
        if not actions:
            return "look"
        if rng.random() < self.mistakes:
            words = list(itertools.chain(*(action.split() for action in actions)))
            return " ".join(rng.choice(words, size=min(4, len(words))))
        verbs = sorted({_verb(action) for action in actions})
        verb = verbs[int(rng.integers(len(verbs)))]
        same = [action for action in actions if _verb(action) == verb]
        return same[int(rng.integers(len(same)))]

    def fingerprint(self) -> dict[str, str]:
        return {"mistakes": str(self.mistakes)}


def _verb(action: str) -> str:
    """What stands before the first blank or bracket.

    >>> _verb("search[red shoes]"), _verb("go to desk 1")
    ('search', 'go')
    """
    return action.replace("[", " ").split(" ", 1)[0]


def collect(
    sources: Mapping[str, float],
    folder: Path,
    seed: int,
    on_part: Callable[[str, float, float], None],
) -> dict[str, list[Path]]:
    """Writes the parts that are missing; returns the parts of each source, in order.

    `sources` are environment ids with the text to collect, in millions of characters (about a third
    as many tokens); `on_part` is called with (source, millions so far, and in all).
    """
    files: dict[str, list[Path]] = {"pages": [_pages(folder)]}
    for env_id, characters in sources.items():
        name, size = env_id.rpartition("/")[2], 0.0
        files[name] = []
        for number in itertools.count():
            path = folder / name / f"{number:04}.jsonl"
            if not path.is_file():
                _write(path, _walk(env_id, seed, number))
            files[name].append(path)
            size += path.stat().st_size / 1e6
            on_part(name, size, characters)
            if size >= characters:
                break
    return files


def documents(path: Path) -> Iterator[list[Message]]:
    """The conversations of a part."""
    with open_file(path) as file:
        for line in file:
            yield json.loads(line)


def _walk(env_id: str, seed: int, number: int) -> Iterator[list[Message]]:
    """The `number`-th part's episodes: the split's tasks in a random order, again and again."""
    env = envs.make(env_id, split="train")
    tasks, prompt = env.tasks, env.prompt
    env.close()
    chosen, seeds = [], []
    for i in range(number * PART, (number + 1) * PART):
        lap, place = divmod(i, len(tasks))
        order = np.random.default_rng([seed, lap]).permutation(len(tasks))
        chosen.append(tasks[order[place]])
        seeds.append(seed + lap)
    walks = run_episodes(env_id, Walker(), chosen, split="train", seed=seeds)
    with_system = PromptStyle(example=False, thoughts=False)
    plain = PromptStyle(instruction=False, example=False, thoughts=False)
    for walk in sorted(walks, key=lambda t: (t.seed, t.task_id)):
        if not walk.error and walk.steps:
            # One in eight opens with the instruction, so that the model has read it.
            style = with_system if zlib.crc32(walk.task_id.encode()) % 8 == 0 else plain
            messages = walk.messages(prompt, style)
            yield [*messages, {"role": "user", "content": walk.final_observation}]


def _pages(folder: Path) -> Path:
    """The bundled encyclopedia, each page as one message."""
    path = folder / "pages" / "0000.jsonl"
    if not path.is_file():
        pages = data.bundled_pages()
        _write(path, ([{"role": "user", "content": f"{p.title}\n{p.text}"}] for p in pages))
    return path


def _write(path: Path, conversations: Iterator[list[Message]]) -> None:
    lines = [json.dumps(messages, ensure_ascii=False) for messages in conversations]
    write_text(path, "".join(line + "\n" for line in lines))
