"""The fast engine against TextWorld's, letter for letter.

Three proofs of different reach: side by side in full (needs `make textworld`; all games: slow);
against checksums of what TextWorld said (`record.py` made them where both agreed); against the
observations of public expert trajectories (in `test_real.py`).
"""

import json
from pathlib import Path

import pytest

from stepagent.envs.alfworld import engine, expert, generated
from tests.envs.alfworld import walks
from tests.envs.alfworld.memo import memoised

RECORDED = Path(__file__).with_name("digests.json")


def plans(game):
    """Both experts' walks."""
    return [[action for _, action in expert.plan(game, name)] for name in expert.EXPERTS]


def all_walks(game):
    """Both experts' walks, and three random ones."""
    return plans(game) + [walks.random_commands(game, seed) for seed in walks.SEEDS]


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
        for kind in generated.TYPES[1::2]:
            assert compared(generated.make(f"{kind}/test-0003"), reference) > 100


def test_textworld_as_it_is_says_the_same(reference):
    """Without the short cuts of `memoised`."""
    data = generated.make("pick_heat_then_place_in_recep/dev-0001")
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
    said = [walks.digest(game.start(), walks.random_commands(game, s)) for s in walks.SEEDS]
    assert walks.combined(said) == recorded[path.parent.name], path


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(6 * 3600)
def test_all_real_games_say_what_textworld_says(real_games, reference):
    """`STEPAGENT_DATA=… pytest -m slow tests/envs/alfworld -k all_real_games_say`"""
    with memoised():
        for path in real_games:
            compared(walks.read(path), reference)
