"""The fast engine against TextWorld's, letter for letter.

Three proofs of different reach: side by side in full (needs `make textworld`; all games: slow);
against checksums of what TextWorld said (`record.py` made them where both agreed); against the
observations of public expert trajectories (in `test_real.py`).
"""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from stepagent import envs
from stepagent.envs.alfworld import engine, expert, generate
from stepagent.envs.alfworld.env import CODE
from stepagent.envs.core import checksum
from tests.envs.alfworld import walks
from tests.envs.alfworld.memo import memoised

RECORDED = Path(__file__).with_name("digests.json")


def all_walks(game):
    """Both experts' walks, and three random ones."""
    return walks.of_experts(game) + [walks.random_commands(game, seed) for seed in walks.SEEDS]


def compared(data, reference):
    """Steps compared on all walks of a game."""
    game, upstream = engine.load(data), reference.load(data)
    return sum(walks.compare(game, upstream, commands)[0] for commands in all_walks(game))


@pytest.mark.real_data
def test_real_games_say_what_textworld_says(real_games, reference):
    with memoised():
        for path in real_games[:: len(real_games) // 5]:
            assert compared(walks.read(path), reference) > 100


def test_generated_games_say_what_textworld_says(reference):
    with memoised():
        for kind in generate.TYPES[1::2]:
            assert compared(generate.make(f"{kind}/test-0003"), reference) > 100


def test_textworld_as_it_is_says_the_same(reference):
    """Without the short cuts of `memoised`."""
    data = generate.make("pick_heat_then_place_in_recep/dev-0001")
    game = engine.load(data)
    walks.compare(game, reference.load(data), walks.random_commands(game, 5, steps=6))


@pytest.mark.real_data
def test_the_recorded_words_of_textworld(real_games):
    recorded = json.loads(RECORDED.read_text())
    assert {path.parent.name for path in real_games} == set(recorded)
    for path in real_games[:: len(real_games) // 15]:
        check_recorded(path, recorded)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(3600)
def test_the_recorded_words_of_textworld_in_all_games(real_games):
    recorded = json.loads(RECORDED.read_text())
    for path in real_games:
        check_recorded(path, recorded)


def check_recorded(path, recorded):
    game = engine.load(walks.read(path))
    digests = [walks.digest(game.start(), walks.random_commands(game, s)) for s in walks.SEEDS]
    assert walks.combined(digests) == recorded[path.parent.name], path


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(6 * 3600)
def test_all_real_games_say_what_textworld_says(real_games, reference):
    """`STEPAGENT_DATA=… pytest -m slow tests/envs/alfworld -k all_real_games_say`"""
    with memoised():
        for path in real_games:
            compared(walks.read(path), reference)


@pytest.mark.skipif(version("alfworld") != "0.4.2", reason="recorded with alfworld 0.4.2")
def test_games_and_plans_are_those_that_the_fingerprint_stands_for():
    """Where this fails on purpose: record the new checksum of the texts, and renew CODE."""
    texts = []
    for kind in generate.TYPES:
        for split in envs.SPLITS:
            data = generate.make(f"{kind}/{split}-0007")
            texts.append(json.dumps(data))
            game = engine.load(data)
            for name in expert.EXPERTS:
                play = game.start()
                texts.append(play.intro())
                for thought, action in expert.plan(game, name):
                    texts.append(f"{thought}{action}{play.step(action)}")
                texts.append(str(play.admissible()))
    assert (checksum(*texts), CODE) == ("f2b3923014823ebb", "e6ead588007fb787")
