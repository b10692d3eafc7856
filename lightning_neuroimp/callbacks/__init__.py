"""Lightning callbacks: schedule, device, processes and loggers around the core."""

from lightning_neuroimp.callbacks.neuron_importance import NeuronImportance

__all__ = ["NeuronImportance"]
