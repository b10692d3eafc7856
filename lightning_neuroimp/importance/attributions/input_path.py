"""Score neurons by what they do while the model's inputs move from a baseline to those of the batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import split_batch, tokens_and_doubt
from lightning_neuroimp.batches.masks import is_mask_name
from lightning_neuroimp.batches.structure import PLAIN, describe, fields_of, map_parts
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.batch_passes import BatchPasses
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore, gradient_passes
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

_REMEDY = "; use attribution='integrated_gradients', whose path is at the layer"


@dataclass(frozen=True)
class InputPath(BuiltInScore):
    """Hold what scores along a path of inputs have in common.

    Attributes:
        steps: number of steps of the path.
        input_baseline: value of all inputs at its beginning.
    """

    needs_gradient: ClassVar[bool] = True  # what a gradient does not lead to is told before the path is followed
    steps: int = 16
    input_baseline: float = 0.0

    def __post_init__(self) -> None:
        kind = type(self).__name__
        object.__setattr__(self, "steps", _validate.integer(f"steps of {kind}", self.steps, least=1))
        baseline = _validate.number(f"input_baseline of {kind}", self.input_baseline)
        object.__setattr__(self, "input_baseline", baseline)

    @property
    def cost(self) -> str:
        """Return the passes that it takes in addition to those that all scores share, in words."""
        return f"{gradient_passes(self.steps)} of the whole model, for all layers together"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.

        Raises:
            InvalidArgument: if the batch's inputs cannot be told from its other tensors, or are no real numbers.
        """
        passes = batch.passes
        if passes is None:
            raise InvalidArgument(f"{self.kind} runs the whole model, and works in an importance pass only")
        return batch.sum_positions(passes.once(self, lambda: self._along(passes))[batch.site])

    def _along(self, passes: BatchPasses) -> dict[str, Tensor]:
        """Return the score of every activation at each site, by the site's text."""
        raise NotImplementedError

    def _moved(self, passes: BatchPasses, share: float) -> Any:
        """Return the batch with inputs that are a share of the way from the baseline."""
        if passes.subject.forward_fn is not None:
            raise InvalidArgument(
                f"{self.kind} follows a path of the model's inputs, but with forward_fn= it cannot be known which "
                f"tensors of a batch these are{_REMEDY}"
            )
        return moved_inputs(passes.batch, share, self.input_baseline, self.kind)


@dataclass(frozen=True)
class Conductance(InputPath):
    """Score neurons by their share in the change of the target while inputs move from a baseline to the batch's.

    The straight path of inputs is cut into equal steps, and for each one the change of h is multiplied by dm/dh at its
    beginning; the products are summed over steps and positions, in units of the target. Over all neurons of a layer
    that everything passes they add up to m(inputs) - m(input baseline), up to the error of the steps. These are the
    numbers of Captum's LayerConductance with method="riemann_trapezoid" and as many steps.

    It says how the target came about from an input without content, not what removal does: the removal's baseline does
    not enter. All layers share the passes. Inputs must be floating-point tensors that the model gets as the batch has
    them (no tokens, no forward_fn); masks stay as they are.

    Attributes:
        steps: number of steps of the path.
        input_baseline: value of all inputs at its beginning.

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Dhamdhere, Sundararajan and Yan, "How important is a neuron?", 2019.

    >>> Conductance(steps=32).name
    'conductance(steps=32)'
    """

    kind: ClassVar[str] = "conductance"

    def _along(self, passes: BatchPasses) -> dict[str, Tensor]:
        """Return the sum over steps of dm/dh times the change of h, at each site."""
        before = passes.run(self._moved(passes, 0.0))
        total = {name: torch.zeros_like(batch.activation) for name, batch in passes.site_batches.items()}
        for step in range(1, self.steps + 1):
            # the end of the path is the pass that all scores share
            after = passes.run(self._moved(passes, step / self.steps)) if step < self.steps else None
            for name, batch in passes.site_batches.items():
                activation = batch.activation if after is None else after[name].activation.to(batch.activation.dtype)
                start = before[name]
                total[name] += start.gradient.to(activation.dtype) * (
                    activation - start.activation.to(activation.dtype)
                )
            before = after or before
        return total


@dataclass(frozen=True)
class InternalInfluence(InputPath):
    """Score neurons by the mean of dm/dh while inputs move from a baseline to the batch's, summed over positions.

    A sensitivity, in units of the target per unit of activation, averaged over the midpoints of equal steps of the
    straight path of inputs: the numbers of Captum's InternalInfluence with method="riemann_middle" and as many steps.
    As for every derivative, how far removal moves a neuron does not enter, and the removal's baseline neither.

    All layers share the passes. Inputs must be floating-point tensors that the model gets as the batch has them (no
    tokens, no forward_fn); masks stay as they are.

    Attributes:
        steps: number of steps of the path.
        input_baseline: value of all inputs at its beginning.

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Leino et al., "Influence-directed explanations for deep convolutional networks", 2018.

    >>> InternalInfluence(steps=32).name
    'internal_influence(steps=32)'
    """

    kind: ClassVar[str] = "internal_influence"

    def _along(self, passes: BatchPasses) -> dict[str, Tensor]:
        """Return the mean over steps of dm/dh, at each site."""
        total = {name: torch.zeros_like(batch.activation) for name, batch in passes.site_batches.items()}
        for step in range(self.steps):
            for name, point in passes.run(self._moved(passes, (step + 0.5) / self.steps)).items():
                total[name] += point.gradient.to(total[name].dtype) / self.steps
        return total


def moved_inputs(batch: Any, share: float, baseline: float, kind: str) -> Any:
    """Return a batch whose inputs are a share of the way from a baseline to what they are.

    Args:
        batch: as the loader yields it; left as it is.
        share: 0 at the baseline, 1 at the inputs.
        baseline: value of all inputs at the beginning of the way.
        kind: of the score, for messages.

    Raises:
        InvalidArgument: if it cannot be told which tensors are the inputs, or they are no real numbers.

    >>> moved_inputs((torch.tensor([[2.0, 4.0]]), torch.tensor([1])), 0.5, 0.0, "conductance")[0]
    tensor([[1., 2.]])
    """
    inputs, targets = split_batch(batch)
    moving = {id(tensor) for tensor in _moving(inputs, batch, kind)}

    def move(part: Any) -> Any:
        if part is targets:
            return part
        if isinstance(part, Tensor):
            return baseline + share * (part - baseline) if id(part) in moving else part
        return part if isinstance(part, PLAIN) else map_parts(move, part)

    return map_parts(move, batch)


def _moving(inputs: Any, batch: Any, kind: str) -> list[Tensor]:
    """Return the tensors among a batch's inputs that move.

    Raises:
        InvalidArgument: if there are none, or something among the inputs is neither a real number nor a mask.
    """
    refuse = partial(_refuse, kind)
    found, masked = list[Tensor](), False
    for name, leaf in _leaves(inputs):
        if isinstance(leaf, PLAIN):
            continue
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or leaf.is_nested or leaf.is_complex():
            raise refuse(leaf)
        if leaf.dtype == torch.bool or is_mask_name(name):
            masked = True
        elif leaf.is_floating_point():
            found.append(leaf)
        else:
            raise refuse(leaf)
    reading = tokens_and_doubt(batch)
    if len(found) > 1 and not masked and (reading.tokens is not None or reading.doubt):
        raise InvalidArgument(
            f"{kind} follows a path of the model's inputs, and one of the batch's {len(found)} floating-point tensors "
            f"may be a mask, which must stay; name it attention_mask{_REMEDY.replace('use', 'or use')}"
        )
    if not found:
        raise refuse(inputs)
    return found


def _refuse(kind: str, leaf: Any) -> InvalidArgument:
    """Return the error for inputs that have no path."""
    return InvalidArgument(
        f"{kind} follows a path from a baseline to the model's inputs, which must be floating-point tensors, but the "
        f"batch holds {describe(leaf)}{_REMEDY}"
    )


def _leaves(part: Any, name: str | None = None) -> Iterator[tuple[str | None, Any]]:
    """Yield what is in containers, each with the name of its field."""
    named = fields_of(part)
    if named is not None:
        for key, inner in named.items():
            yield from _leaves(inner, str(key))
    elif isinstance(part, tuple | list):
        for inner in part:
            yield from _leaves(inner, name)
    else:
        yield name, part
