"""A page that shows the suite: `stepagent play --web`.

Choose an environment and a task; play as a person, let the expert or an agent take the next steps,
look at the admissible actions and at the expert's suggestion, and save the episode as a trajectory.
Or watch the results of evaluations while they run. It listens on this machine only and needs
nothing but the standard library.
"""

from stepagent.eval.play.command import Config, main

__all__ = ["Config", "main"]
