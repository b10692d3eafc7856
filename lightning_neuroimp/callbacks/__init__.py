"""Attach all of this to a Lightning Trainer: when to measure, on which processes, and where the results go."""
