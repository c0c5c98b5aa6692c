"""StepAgent's environments. Importing this registers them with Gymnasium.

>>> import gymnasium as gym
>>> import stepagent
>>> "stepagent/ScienceWorld-v0" in gym.registry
True
"""

from stepagent.checkout import alias
from stepagent.envs.core import SPLITS, FreeText, Outcome, TextEnv
from stepagent.envs.react import Message, Prompt, PromptStyle, Reply, parse
from stepagent.envs.registration import ENTRY_POINTS, make, register
from stepagent.envs.trajectory import Step, Trajectory

alias(__name__)

__all__ = [
    "ENTRY_POINTS",
    "SPLITS",
    "FreeText",
    "Message",
    "Outcome",
    "Prompt",
    "PromptStyle",
    "Reply",
    "Step",
    "TextEnv",
    "Trajectory",
    "make",
    "parse",
    "register",
]
