"""Trajectories → policies: supervised fine-tuning, StepAgent, and every baseline of the paper."""

from stepagent.checkout import alias

alias(__name__)
