"""Compute scores of neurons for the samples of a batch: one family of attributions per file."""
