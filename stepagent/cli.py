"""The command `stepagent`: `stepagent WORD …` runs the module that the word stands for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "eval": ("stepagent.eval.run", "score agents on an environment, or on a suite of them"),
    "train": ("stepagent.training.run", "train a policy with any of the methods"),
    "sweep": ("stepagent.training.sweep.command", "train a table of experiments and report it"),
    "pretrain": (
        "stepagent.training.pretrain.command",
        "pre-train a small language model",
    ),
    "collect": ("stepagent.training.collect", "collect an agent's episodes to learn from"),
    "merge": ("stepagent.training.merge", "fold an adapter into its base model"),
    "convert": ("stepagent.training.convert.command", "convert trajectories of other projects"),
    "serve": ("stepagent.envs.serve.__main__", "serve environments over HTTP"),
    "play": (
        "stepagent.eval.play.command",
        "play an environment by hand, or watch agents, in the terminal or on a page",
    ),
    "check": ("stepagent.envs.check", "check that an environment keeps the contract"),
    "view": ("stepagent.eval.view.command", "write runs and their episodes as one HTML page"),
    "compare": ("stepagent.eval.compare", "compare runs, with intervals and significance"),
    "agreement": ("stepagent.eval.agreement.command", "measure agreement with the expert"),
    "regret": ("stepagent.eval.regret", "say at which step episodes were lost, by the expert"),
    "replay": ("stepagent.eval.replay", "play recorded actions again and check what comes of them"),
    "inspect-log": ("stepagent.eval.inspect_log", "write results as a log of Inspect's viewer"),
    "bench": ("stepagent.bench", "measure a part of StepAgent against the plain way"),
    "alfworld-export": (
        "stepagent.envs.alfworld.export",
        "write generated ALFWorld games as files",
    ),
    "mind2web-ranks": ("stepagent.envs.mind2web.convert", "convert the official candidate ranks"),
    "webshop-site": ("stepagent.envs.webshop.site", "serve WebShop as web pages for people"),
    "wikipedia-corpus": ("stepagent.envs.wikipedia.prepare", "make a corpus of a Wikipedia dump"),
    "install": ("stepagent.install", "install what cannot be a dependency, such as model weights"),
    "completion": ("stepagent.completion", "print the completion script of a shell"),
}
"""Word → its module, which has a `main`, and what it does."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {word:{width}}  {what}" for word, (_, what) in COMMANDS.items())
    return (
        "usage: stepagent COMMAND [OPTION …]\n\n"
        "Text environments for language agents, step-wise reinforcement learning from experts.\n\n"
        f"commands:\n{lines}\n\n"
        "`stepagent COMMAND --help` explains the options of a command.\n"
        "`stepagent --version` prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"stepagent {version('stepagent')}")
        return 0
    word, *rest = words
    if word not in COMMANDS:
        from stepagent.command_line import suggestion

        print(f"stepagent: no command {word!r}.{suggestion(word, COMMANDS)}", file=sys.stderr)
        return 2
    main_of_word = importlib.import_module(COMMANDS[word][0]).main
    # A custom environment or method, `module:NAME`, is usually in the folder where the command is
    # started; `python -m` looks there, a console script does not. Last, so that it hides nothing.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return main_of_word(rest)
