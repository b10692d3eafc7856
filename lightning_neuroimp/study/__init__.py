"""Answer one question about a model per function, leading its samples all the way to results."""
