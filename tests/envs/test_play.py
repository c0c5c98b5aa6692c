"""Playing by hand, with the keyboard replaced."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from stepagent import envs
from stepagent.envs import trajectory as files
from stepagent.envs.play import main, play
from tests import toy_env

TASKS = envs.make(toy_env.ID, split="train").tasks


def played(*lines):
    typed = iter(lines)

    def ask():
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    env = envs.make(toy_env.ID, split="train")
    return play(toy_env.ID, env, TASKS[0], 0, ask, console), console.export_text()


def test_an_episode_to_its_end():
    env = envs.make(toy_env.ID, split="train")
    env.reset(seed=0, options={"task_id": TASKS[0]})
    episode, shown = played(*[f"Thought: {t}\nAction: {a}" for t, a in env.expert_plan()])
    assert episode.success
    assert episode.reward == 1
    assert episode.error == ""
    assert [(s.thought, s.action) for s in episode.steps] == env.expert_plan()
    assert "Reach 7." in shown
    assert "The episode is solved: score 1.00" in shown


def test_asides_cost_no_step():
    episode, shown = played("/actions", "/expert", "/help", "add 1", "/quit", "add 1")
    assert [s.action for s in episode.steps] == ["add 1"]
    assert episode.error == "left before the end"
    for text in ("add 2\nadd 3", "are left.)", "there are /actions, /expert, /quit", "is left: "):
        assert text in shown


def test_markup_and_nonsense_are_shown_as_they_are():
    _, shown = played("[bold]x[/bold]", "", "\x1b[2J")
    assert "What is '[bold]x[/bold]'?" in shown


def test_the_command_records_only_when_asked(tmp_path):
    root, out = Path(__file__).parents[2], tmp_path / "a" / "out.jsonl"
    command = [sys.executable, "-m", "envs.play", toy_env.ID, "--task-id", TASKS[0]]
    run = {
        "input": "add 1\nadd 2\n",
        "text": True,
        "capture_output": True,
        "cwd": root,
        "timeout": 60,
    }
    assert subprocess.run(command, **run).returncode == 0
    assert not out.exists()
    done = subprocess.run([*command, "--out", str(out)], **run)
    assert done.returncode == 0, done.stderr
    (recorded,) = files.read(out)
    assert [s.action for s in recorded.steps] == ["add 1", "add 2"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stepagent/Nowhere-v0"], "ScienceWorld"),
        ([toy_env.ID, "--task-id", "odd/8"], "no task 'odd/8'"),
        ([toy_env.ID, "--env-args.speed", "3"], "speed"),
    ],
)
def test_unknown_names(argv, message, capsys):
    assert main(argv) == 2
    assert message in " ".join(capsys.readouterr().err.split())
