"""Rows of tokens that branch: what leads to a token, and how a row is cut."""

from __future__ import annotations

import random

import pytest

from stepagent.agents.encoded import Encoded, depths, encode_paths, ranges, reaches


def paths(seed: int, steps: int, anew: int = -1) -> list[tuple[list[int], list[int]]]:
    """States and replies under a template that drops the first half of each reply."""
    rng = random.Random(seed)
    history, made = [rng.randrange(90) for _ in range(9)], []
    for step in range(steps):
        if step == anew:
            history = [99, *history]
        history = [*history, *(rng.randrange(90) for _ in range(3))]
        reply = [rng.randrange(90) for _ in range(4)]
        made.append(([*history, 95], reply))
        history = [*history, 96, *reply[2:]]
    return made


@pytest.mark.parametrize("anew", [-1, 1, 3])
def test_every_step_has_its_own_path(anew: int):
    made = paths(1, 6, anew)
    encoded = encode_paths(made)
    assert len(encoded.joins) == 5
    assert len(encoded.ids) < sum(len(state) + len(reply) for state, reply in made) / 2
    for step, ((start, end), (state, reply)) in enumerate(zip(encoded.replies, made, strict=True)):
        assert encoded.state(step) == state
        assert encoded.ids[start:end] == reply
        assert encoded.path(end) == state + reply
        assert encoded.alone(step) == Encoded(state + reply, [(len(state), len(state + reply))])
    assert encoded.longest == max(len(state) + len(reply) for state, reply in made)


@pytest.mark.parametrize("anew", [-1, 1, 3])
def test_a_token_sees_its_path(anew: int):
    encoded = encode_paths(paths(2, 5, anew))
    size = len(encoded.ids)
    depth, reach = depths(encoded.joins, size), reaches(encoded.joins, size)
    for token in range(size):
        on_path = [i for a, b in ranges(encoded.joins, token + 1) for i in range(a, b)]
        assert [j for j in range(size) if j <= token < reach[j]] == on_path
        assert depth[token] == len(on_path) - 1


def test_parts_share_their_beginning():
    made = paths(3, 6, anew=2)
    encoded = encode_paths(made)
    parts = encoded.parts()
    assert [first for first, _ in parts] == [0, 2]
    for first, part in parts:
        for step in range(len(part.replies)):
            assert part.state(step) == made[first + step][0]
            start, end = part.replies[step]
            assert part.ids[start:end] == made[first + step][1]
    assert sum(len(part.ids) for _, part in parts) == len(encoded.ids)
    assert encoded.part(0, 6) == encoded
    assert encoded.part(3, 5).state(1) == made[4][0]
    assert len(encoded.part(0, 2).ids) == encoded.replies[1][1]
    one = encode_paths(made[:2])
    assert one.parts() == [(0, one)]


def test_a_conversation_that_extends_itself_is_one_row():
    state, reply = [1, 2, 3], [4, 5]
    longer = [*state, *reply, 6, 7]
    encoded = encode_paths([(state, reply), (longer, [8]), ([*longer, 8, 9], [])])
    assert encoded == Encoded([1, 2, 3, 4, 5, 6, 7, 8, 9], [(3, 5), (7, 8)])
