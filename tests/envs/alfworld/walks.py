"""Walks through a game that both engines take, and what came of them, to the letter."""

import hashlib
import json
import random

from stepagent.envs.alfworld import engine, expert

SEEDS = (0, 1, 2)
STEPS = 50
_FORMS = (
    "take {} from {}",
    "put {} in/on {}",
    "move {} to {}",
    "go to {}",
    "open {}",
    "close {}",
    "examine {}",
    "use {}",
    "clean {} with {}",
    "heat {} with {}",
    "cool {} with {}",
    "slice {} with {}",
    "Go to {}",
    "go to {}.",
    "go to the {}",
)
_NONSENSE = ("help", "", "look around", "foo", "go to", "take", "inventory now", "LOOK", "look.")


def steps_of(play, commands):
    """(command, text, won, admissible commands) of every step, the beginning first."""
    yield None, play.intro(), play.won(), play.admissible()
    for command in commands:
        text = play.step(command)
        yield command, text, play.won(), play.admissible()
        if play.won():
            return


def random_commands(game, seed, steps=STEPS):
    """Commands of a random walk; about one in six is invalid. The same in every process.

    The walk is made by playing; kinds of commands are drawn before commands, so that it takes and
    opens things rather than going from place to place all the time.
    """
    rng = random.Random(f"{seed}/{game.start().intro()}")
    names = sorted(game.by_name)
    play, commands = game.start(), []
    for _ in range(steps):
        if rng.random() < 1 / 6:
            command = rng.choice(_NONSENSE)
            if rng.random() < 0.8:
                form = rng.choice(_FORMS)
                command = form.format(*(rng.choice(names) for _ in range(form.count("{}"))))
        else:
            kinds = {}
            for text in play.admissible():
                kinds.setdefault(text.split()[0], []).append(text)
            command = rng.choice(kinds[rng.choice(sorted(kinds))])
        commands.append(command)
        play.step(command)
        if play.won():
            break
    return commands


def compare(game, reference, commands):
    """Plays the commands in both engines: steps, and the digest of what TextWorld said.

    AssertionError at the first letter that differs.
    """
    count, sha = 0, hashlib.sha256()
    our_steps, their_steps = steps_of(game.start(), commands), steps_of(reference.start(), commands)
    for mine, upstream in zip(our_steps, their_steps, strict=True):
        assert mine == upstream, f"after {mine[0]!r}: {mine[1:3]} is not {upstream[1:3]}"
        sha.update(json.dumps(upstream).encode())
        count += 1
    return count - 1, sha.hexdigest()


def digest(play, commands):
    """A checksum of everything that was said on a walk, admissible commands included."""
    sha = hashlib.sha256()
    for step in steps_of(play, commands):
        sha.update(json.dumps(step).encode())
    return sha.hexdigest()


def combined(digests):
    """One short checksum of a game's walks."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def read(path):
    return engine.parse(path.read_bytes())


def of_experts(game):
    """Both experts' walks."""
    return [[action for _, action in expert.plan(game, name)] for name in expert.EXPERTS]
