"""Other words for the experts' thoughts: they say the same, in several ways."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stepagent import envs
from stepagent.agents import make_agent
from stepagent.envs import wording
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.errors import UsageError
from stepagent.eval.rollout import run_episodes
from tests.envs import guess  # noqa: F401  (registers the environment)

NAMES = (
    "ALFWorld",
    "Mind2Web",
    "ScienceWorld",
    "WebShop",
    "HotpotQA",
    "2WikiMultihopQA",
    "MuSiQue",
)
FOLDER = Path(wording.__file__).parent


def _file(name: str) -> Path:
    env = envs.make(f"stepagent/{name}-v0", split="train")
    try:
        return wording.file_of(env)
    finally:
        env.close()


def _plays(name: str) -> list[Trajectory]:
    """The expert on four tasks, of ScienceWorld those of four types."""
    env = envs.make(f"stepagent/{name}-v0", split="train")
    tasks = list(
        {
            task.split("/")[0] if name == "ScienceWorld" else task: task for task in env.tasks
        }.values()
    )
    env.close()
    few = tasks[:: max(1, len(tasks) // 4)][:4]
    return list(run_episodes(env.spec.id, make_agent("expert"), few, split="train", workers=2))


@pytest.mark.parametrize("name", NAMES)
def test_every_thought_is_said_again_with_the_same_slots(name):
    file, changed, total = _file(name), 0, 0
    for trajectory in _plays(name):
        again = wording.reword(file, trajectory, seed=0)
        assert again == wording.reword(file, trajectory, seed=0)
        assert [s.action for s in again.steps] == [s.action for s in trajectory.steps]
        shown: list[str] = []
        for before, after in zip(trajectory.steps, again.steps, strict=True):
            shown.append(before.observation)
            pieces = wording._pieces(file, before.thought, tuple(shown))
            assert all(form or _is_shown(piece, shown) for piece, form in pieces), before.thought
            # Neither more nor less: the new words have the same slots with the same contents.
            read = wording._pieces(file, after.thought, tuple(shown))
            assert _slots(read) == _slots(pieces)
            changed += before.thought != after.thought
            total += 1
    assert changed > 0.6 * total


def _is_shown(piece: str, shown: list[str]) -> bool:
    return any(piece in text for text in shown)


def _slots(pieces) -> list[dict[str, str]]:
    return [form.slots(piece) if form else {"": piece} for piece, form in pieces]


@pytest.mark.parametrize(
    "file", sorted(FOLDER.glob("*/wordings.yaml")), ids=lambda f: f.parent.name
)
def test_the_forms_of_a_list_are_different_and_have_the_same_slots(file):
    forms = wording.forms(file)
    texts = [form.text for form in forms]
    assert len(set(texts)) == len(texts), "a form in two lists has two meanings"
    for form in forms:
        assert len(form.alike) >= 3
        assert not re.search(r"\}\W?\{", form.text), "where one slot ends would be unclear"
        assert {n.lower() for n in re.findall(r"\{(\w+)\}", form.text)} == {
            n.lower() for n in re.findall(r"\{(\w+)\}", form.alike[0])
        }


def test_words_differ_by_seed_task_and_step():
    file = _file("ALFWorld")
    steps = tuple(Step("You see a desk.", "Now I make the cup 1 hot.", "wait") for _ in range(12))
    play = Trajectory("env", "task-1", "train", "expert", 0, steps)
    by_step = [s.thought for s in wording.reword(file, play, 0).steps]
    assert set(by_step) == {f.format(rest="cup 1 hot") for f in _alike(file, "Now I make")}
    assert by_step != [s.thought for s in wording.reword(file, play, 1).steps]
    other = replace(play, task_id="task-2")
    assert by_step != [s.thought for s in wording.reword(file, other, 0).steps]


def _alike(file: Path, begin: str) -> tuple[str, ...]:
    return next(form.alike for form in wording.forms(file) if form.text.startswith(begin))


def test_what_a_page_says_stays_as_it_is():
    """A quoted sentence may look like one of the expert's own."""
    file = _file("HotpotQA")
    page = "The song is old. That means a lot. It is by Ada St. Clair."
    thought = f"I read: {page} So it is Ada St. Clair. I search for Ada St. Clair."
    said = {wording.reworded(file, thought, [page], str(key)) for key in range(40)}
    assert len(said) > 20
    assert all(page in text for text in said)
    assert all(text.count("Ada St. Clair") == 3 for text in said)


def test_an_unclear_sentence_stays():
    """Where {it} ends and {value} begins could be read in two ways."""
    file = _file("Mind2Web")
    clear = "The task names Ada, and the field Name is where that belongs."
    unclear = "The task names Ada, and Bob, and the field Name is where that belongs."
    assert len({wording.reworded(file, clear, [], str(key)) for key in range(40)}) == 4
    assert {wording.reworded(file, unclear, [], str(key)) for key in range(40)} == {unclear}


def test_words_of_their_own_and_unknown_sentences_stay():
    file = _file("ALFWorld")
    step = Step("obs", "Now I make the cup 1 hot.", "wait", reply="Thought: mine\nAction: wait")
    play = Trajectory("env", "t", "train", "a", 0, (step, Step("obs", "Something else.", "wait")))
    assert wording.reword(file, play, 3).steps == play.steps
    assert wording.reworded(file, "", [], "key") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "must hold a list"),
        ("- a", "is not a list of texts"),
        ("- [1, 2]", "is not a list of texts"),
        ("- ['{x} is', '{y} is']", "different slots"),
    ],
)
def test_a_file_that_is_no_list_of_forms_is_named(tmp_path, text, message):
    path = tmp_path / "wordings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"{path}.*{message}"):
        wording.forms(path)


def test_an_environment_with_one_wording_says_so():
    env = envs.make("tests/Guess-v0", split="train")
    with pytest.raises(UsageError, match=r"has one wording only.*wordings.yaml"):
        wording.file_of(env)
