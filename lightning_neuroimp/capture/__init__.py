"""Run the model on a batch without leaving a trace: read activations, or set neurons to their baseline."""
