"""Draw figures of results, one kind per file; Matplotlib is imported inside the functions that draw."""
