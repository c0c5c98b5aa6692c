"""Other projects' trajectories into ours and back: `python -m training.convert`."""
