"""Draw figures of results, one kind per module. Matplotlib is imported inside the functions that draw."""
