"""Compare the accuracy on the probe set with what the training logs: a model may be run otherwise by its steps."""

import math
import re
from collections.abc import Collection
from itertools import pairwise

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_neuroimp import _compat
from lightning_neuroimp.callbacks.options import RunOptions
from lightning_neuroimp.callbacks.processes import gather_objects
from lightning_neuroimp.results.findings.diagnosis import with_other_logits
from lightning_neuroimp.results.measurement import Results

_ACCURACY = {"acc", "accuracy"}
_OTHER = {"train", "training", "token", "tokens", "loss", "std", "best", "coarse", "super"}
"""Words in the names of accuracies of something else, of another epoch, and of what is no accuracy."""


class LoggedAccuracy:
    """Find measurements of other logits than those that the validation steps use.

    What a validation run logs is complete only after its measurement. So a measurement is compared at the end of its
    run; the next one is compared with the last value before it is published, if the one before was of other logits.

    Args:
        options: of the run.
    """

    def __init__(self, options: RunOptions) -> None:
        settings = options.settings
        # not comparable: accuracies of some classes, of other classes than the label, or of unknown strata
        self._comparable = (
            settings.classes is None and settings.target_class == "label" and not callable(options.stratify)
        )
        self._options, self._logged = options, dict[str, float]()
        self._warned = self._differed = False

    def before_publishing(self, results: Results) -> Results:
        """Return a measurement with the finding that its logits are other ones, by what was logged last."""
        return self._judged(results) if self._differed else results

    def at_the_end(self, trainer: "pl.Trainer", results: Results) -> Results:
        """Return the measurement of the validation run that ends now, with the finding if its logits are other ones.

        Warns once. Every process must call this, and all get the same.

        Args:
            trainer: at the end of a validation run.
            results: measured in it.
        """
        if not self._comparable:
            return results
        shares = gather_objects(self._accuracies(trainer))
        values: dict[str, list[float]] = {}
        for key, value in (pair for share in shares for pair in share.items()):
            values.setdefault(key, []).append(value)
        self._logged = {key: math.fsum(parts) / len(parts) for key, parts in values.items()}
        results = self._judged(results)
        found = [finding for finding in results.findings if finding.id == "other-logits"]
        self._differed = bool(found)
        if found and not self._warned:
            self._warned = True
            rank_zero_warn(f"NeuronImportance {self._options.name!r}: {found[0].text} To do: {found[0].remedy}.")
        return results

    def _judged(self, results: Results) -> Results:
        return with_other_logits(results, self._logged, stratified=self._options.stratify is True)

    def _accuracies(self, trainer: "pl.Trainer") -> dict[str, float]:
        """Return the accuracies that a validation run has logged on this process, by key."""
        names = {str(getattr(callback, "name", "")) for callback in trainer.callbacks}  # type: ignore[attr-defined]
        found: dict[str, float] = {}
        for key, value in _compat.validation_metrics(trainer).items():
            share = as_share(float(value)) if value.numel() == 1 else None
            base, _, loader = key.partition("/dataloader_idx_")
            drawn = self._is_of_drawn(loader, len(trainer.num_val_batches))
            if share is not None and drawn and is_accuracy(base, names):
                found[base] = min(share, found.get(base, 1.0))  # of pooled loaders: at least that of the worst
        return found

    def _is_of_drawn(self, loader: str, n_loaders: int) -> bool:
        """Tell whether a value is of samples that are drawn from.

        Args:
            loader: number of the loader that it is of; "" for all of them.
            n_loaders: number of loaders.
        """
        chosen = self._options.dataloaders
        if chosen is None:
            return True
        return int(loader) in chosen if loader else len(chosen) == n_loaders


def as_share(value: float) -> float | None:
    """Return an accuracy from 0 to 1, which may be given in percent; None for other values.

    >>> as_share(0.97), as_share(97.0), as_share(-1.0)
    (0.97, 0.97, None)
    """
    if not 0 <= value <= 100:
        return None
    return value if value <= 1 else value / 100


def is_accuracy(key: str, ours: Collection[str] = ()) -> bool:
    """Tell whether a logged value is the accuracy of the first guess, by its name.

    Args:
        key: under which it was logged.
        ours: names of callbacks of this package, which begin their keys.

    >>> [is_accuracy(key) for key in ("val/acc", "MulticlassAccuracy", "top1_acc", "top5_acc", "vacc", "val_loss")]
    [True, True, True, False, False, False]
    >>> [is_accuracy(key) for key in ("val/acc_coarse", "val_best_acc")]
    [False, False]
    """
    if key.partition("/")[0] in ours:
        return False
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", key)]
    if not _ACCURACY & set(words) or _OTHER & set(words):
        return False
    # of the first five guesses, or of class 5
    numbers = [after for before, after in pairwise(words) if before in {"top", "k", *_ACCURACY}]
    return not any(number.isdigit() and int(number) != 1 for number in numbers)
