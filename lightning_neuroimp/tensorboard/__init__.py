"""Results in TensorBoard."""
