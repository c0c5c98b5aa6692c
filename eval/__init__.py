"""Scores any agent on any registered environment: rollouts, metrics, reports, benchmarks.

>>> from stepagent.eval.rollout import run_episodes  # trajectories, as a generator
>>> from stepagent.eval.run import evaluate  # a whole evaluation in a directory, resumable
"""

from stepagent.checkout import alias

alias(__name__)
