"""Show results to people, as text, figures and summaries in trackers; nothing in here computes scores."""
