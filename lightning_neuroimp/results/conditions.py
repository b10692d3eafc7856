"""Conditions: what was found out about a model, in a few forward passes, before it was measured."""

from dataclasses import dataclass

import numpy as np

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class Conditions(Record):
    """Hold what decides whether scores mean anything, whatever the layer and the score are.

    Attributes:
        batch_dependence: how far a sample's logits move when another sample is left out of its batch: the largest
            change, as a share of the logits' standard deviation. 0: not beyond rounding; NaN: not known.
        random_spread: the same for two passes over one batch that draw other random numbers; 0: none are drawn.
        bounded_outputs: whether all outputs lie between 0 and 1, as probabilities do, though rows do not sum to 1.
        flat_sites: sites at which every gradient is exactly zero, while removing all neurons changes the logits.

    >>> Conditions().batch_dependence
    nan
    """

    batch_dependence: float = np.nan
    random_spread: float = np.nan
    bounded_outputs: bool = False
    flat_sites: tuple[str, ...] = ()
