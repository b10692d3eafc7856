"""Draw a probe set, a bounded and reproducible sample, from the batches of a loader, and make batches of it again."""
