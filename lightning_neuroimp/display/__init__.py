"""Show results to people: as text, as figures, in trackers. Nothing in here computes scores or imports torch."""
