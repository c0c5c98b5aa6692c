"""Scores any agent on any registered environment: rollouts, metrics, reports, benchmarks.

>>> from eval.rollout import run_episodes      # trajectories, as a generator
>>> from eval.run import evaluate              # a whole evaluation in a directory, resumable
"""
