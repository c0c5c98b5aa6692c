"""One HTML file that shows runs: `stepagent view RUN [RUN …] --out report.html`.

Scores with intervals, by task type, lengths, how episodes ended, learning curves, and every episode
step by step beside the expert's. The file opens from disk in any current browser and asks nothing
of a network: its content security policy forbids it, and forbids every script but its own, so that
whatever stands in an observation is text and nothing else.
"""

from stepagent.eval.view.command import Config, main

__all__ = ["Config", "main"]
