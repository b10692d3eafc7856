"""importance/attributions."""
