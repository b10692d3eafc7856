"""The errors that this package raises.

All of them are `NeuroimpError`s, and also the built-in kinds that users expect to catch. Only `InvalidArgument` may
stop a training run: every other failure costs the measurement, and training goes on.
"""


class NeuroimpError(Exception):
    """Any error that this package raises on purpose."""


class InvalidArgument(NeuroimpError, ValueError):
    """Say that an argument, a batch, a layer or an output cannot be worked with, and what would work instead.

    Also raised, with the original error as its cause, where a function that the user passed (`forward_fn`, an
    attribution, a target, ...) fails by a mistake in it.
    """


class FileFormatError(NeuroimpError, ValueError):
    """Say that a file does not hold what it should, or that its version cannot be read."""


class NonFiniteOutputs(NeuroimpError, FloatingPointError):
    """Say that there is nothing to measure, because no sample has finite outputs or activations."""


class MeasurementFailed(NeuroimpError, RuntimeError):
    """Say that a measurement cannot be made, or has not been made yet, although the arguments are valid."""


class MissingPackage(NeuroimpError, ImportError):
    """Say that something needs a package that is not installed, and how to install it."""
