"""One HTML file that shows runs: `stepagent view RUN [RUN …] --out report.html`.

Scores with intervals, by task type, lengths, how episodes ended, learning curves, and every episode
step by step beside the expert's. The file opens from disk in any current browser and makes no
network requests: its content security policy forbids them, and every script but its own, so that
whatever an observation contains is shown as text.
"""

from stepagent.eval.view.command import Config, main

__all__ = ["Config", "main"]
