"""Text environments for language agents, and step-wise reinforcement learning from experts.

Importing this registers the environments with Gymnasium; it loads no torch and no Java.

>>> import gymnasium as gym
>>> import stepagent
>>> "stepagent/ScienceWorld-v0" in gym.registry
True
"""

from stepagent.envs import SPLITS, Outcome, TextEnv, Trajectory, make, register

__all__ = ["SPLITS", "Outcome", "TextEnv", "Trajectory", "make", "register"]
