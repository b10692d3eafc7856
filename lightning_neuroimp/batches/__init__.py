"""Turn a loader's batches into a probe set, and its samples into batches, texts and pictures."""
