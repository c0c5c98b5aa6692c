"""Scores any agent on any registered environment: rollouts, metrics, reports, benchmarks.

>>> from stepagent.eval.rollout import run_episodes  # trajectories, as a generator
>>> from stepagent.eval.evaluate import evaluate  # one evaluation in a directory, resumable
"""

from stepagent.checkout import alias

alias(__name__)
