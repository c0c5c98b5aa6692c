"""Agents, which act in the environments. `make_agent` builds one from a line of text.

Importing this package is light; torch, transformers and requests are loaded by the agents that
need them.
"""

from stepagent.agents.core import Agent, Turn
from stepagent.agents.specs import SPECS, make_agent, options_of
from stepagent.checkout import alias

alias(__name__)

__all__ = ["SPECS", "Agent", "Turn", "make_agent", "options_of"]
