"""results/findings."""
