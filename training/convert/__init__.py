"""Other projects' trajectories into ours and back: `stepagent convert`."""
