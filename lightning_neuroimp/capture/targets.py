"""Targets: the scalar of each sample that is explained, and the class whose target it is."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import OWN


@runtime_checkable
class TargetFn(Protocol):
    """Compute one scalar per sample: (sample, class) logits and (sample,) classes to (sample,) values."""

    def __call__(self, logits: Tensor, classes: Tensor, /) -> Tensor:
        """Return the scalar of each sample."""


TARGET_CLASSES = ("label", "predicted")


def margin(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Return the logit of each sample's class minus the log-sum-exp of all others, in logits.

    It does not saturate where the probability does; with two classes it is the log odds, and its sign the decision.
    """
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return own[:, 0] - others.logsumexp(1)


def logit(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Return the logit of each sample's class."""
    return logits.gather(1, classes[:, None])[:, 0]


def log_probability(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Return the log-probability of each sample's class."""
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0]


def probability(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Return the probability of each sample's class."""
    return logits.softmax(1).gather(1, classes[:, None])[:, 0]


TARGETS: dict[str, TargetFn] = {
    function.__name__: function for function in (margin, logit, log_probability, probability)
}


@dataclass(frozen=True)
class Target:
    """Hold the function that gives each sample's explained scalar.

    Attributes:
        name: for tables.
        kind: key of a built-in target; "own" for a user's function, whatever its name is.
        function: (sample, class) logits and (sample,) classes to one scalar per sample.
    """

    name: str
    kind: str
    function: TargetFn

    @classmethod
    def of(cls, target: Any) -> "Target":
        """Return the target that a name or a function stands for.

        Raises:
            InvalidArgument: if it is neither a known name nor a callable.
        """
        if isinstance(target, Target):
            return target
        if isinstance(target, str) or not callable(target):
            function = "a callable (logits, classes) -> one scalar per sample"
            name = _validate.choice("target", target, tuple(TARGETS), [function])
            return cls(name, name, TARGETS[name])
        known = next((name for name, function in TARGETS.items() if function is target), OWN)
        return cls(getattr(target, "__name__", type(target).__name__), known, target)

    def values(
        self, logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]
    ) -> Float[Tensor, " sample"]:
        """Compute the explained scalar of each sample.

        Raises:
            InvalidArgument: if a user's function fails, or does not return one scalar per sample.
        """
        with _validate.users_function(f"target {self.name!r}"):
            values = self.function(logits, classes)
        if not isinstance(values, Tensor) or values.shape != classes.shape:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise InvalidArgument(
                f"target must return one scalar per sample, shape ({len(classes)},), got {got} from {self.name!r}"
            )
        if self.kind == OWN and values.is_floating_point():
            # a value that is not finite has no derivative that means something, though torch may give one
            values = values * torch.where(values.isfinite(), 1.0, torch.nan).to(values.dtype)
        return values

    def margin_slope(
        self, logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]
    ) -> Float[Tensor, " sample"] | None:
        """Return the derivative of the target with respect to the margin; None where it depends on more than that.

        The probability is the logistic function of the margin, and the log-probability its logarithm.
        """
        if self.kind == "margin":
            return torch.ones_like(logits[:, 0])
        if self.kind == "log_probability":
            return torch.sigmoid(-margin(logits, classes))
        if self.kind == "probability":
            value = margin(logits, classes)
            return torch.sigmoid(value) * torch.sigmoid(-value)
        return None


def usable(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Bool[Tensor, " sample"]:
    """Tell which samples have logits that can be explained.

    A logit of minus infinity rules a class out, as masks of classes do; it may neither be the explained class's nor
    that of all others. NaN, and plus infinity, are those of a model that has diverged.

    >>> inf = float("inf")
    >>> usable(torch.tensor([[1.0, -inf, 0.0], [-inf, 1.0, 0.0], [1.0, inf, 0.0]]), torch.tensor([0, 0, 0])).tolist()
    [True, False, False]
    """
    return ~(logits.isnan() | (logits == float("inf"))).any(1) & margin(logits, classes).isfinite()


MARGIN = Target("margin", "margin", margin)


def validate_target_class(target_class: Any) -> str | int:
    """Return the class whose target is explained: "label", "predicted", or a class number.

    Raises:
        InvalidArgument: if it is none of these.
    """
    if isinstance(target_class, str):
        return _validate.choice("target_class", target_class, TARGET_CLASSES, ["the number of a class"])
    remedy = "or 'label' or 'predicted'"
    return _validate.integer("target_class, where it is the number of a class,", target_class, least=0, remedy=remedy)


def explained_classes(
    logits: Float[Tensor, "sample class"], labels: Int[Tensor, " sample"], target_class: str | int
) -> Int[Tensor, " sample"]:
    """Return the class of each sample whose target is explained.

    Args:
        logits: of the whole model.
        labels: what the data say; -1 for samples without a label, for which class 0 stands in.
        target_class: "label", "predicted", or the number of one class for all samples.

    Raises:
        InvalidArgument: if a class is asked for that the model does not have.
    """
    if target_class == "label":
        return labels.clamp_min(0)
    if target_class == "predicted":
        return logits.detach().argmax(1)
    if int(target_class) >= logits.shape[1]:
        raise InvalidArgument(
            f"target_class={target_class} is not among the classes 0..{logits.shape[1] - 1} of the model"
        )
    return torch.full_like(labels, int(target_class))
