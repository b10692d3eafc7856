"""Read each sample's embedding from a forward pass: what KMeans clusters, and what finds similar samples."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_neuroimp.capture.forward import Prediction
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.neuron_axis import AxisTracker
from lightning_neuroimp.capture.positions import chosen_positions, count_positions, sum_positions
from lightning_neuroimp.capture.site_tensor import read_activation
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site


class EmbeddingReader:
    """Read each sample's embedding from a forward pass: a site's activations, averaged over positions.

    Example:
        reader = EmbeddingReader(model, "encoder")
        with reader.attach():
            embedding = reader.read(Prediction(model(x), labels, None), required=True)

    Args:
        model: its forward passes are read.
        layer: the site; None: the input of that linear layer which the first pass calls last.
        axes: neuron axis of each site for which it is known already.

    Raises:
        InvalidArgument: if there is no such layer, or it stands for several.
    """

    def __init__(self, model: nn.Module, layer: str | Site | None, axes: Mapping[str, int] | None = None) -> None:
        self._model = model
        sites = () if layer is None else find_sites(model, layer)
        if len(sites) > 1:
            raise InvalidArgument(f"the embedding must be one layer, got {', '.join(map(str, sites))}")
        self._site = sites[0] if sites else None
        self._activation: Tensor | None = None  # of the last pass
        self._axis = -1
        self._caller: nn.Module | None = None  # the linear layer that was given the activation
        self._last: nn.Module | None = None  # the same for all passes once one has been read
        self._width: int | None = None
        self._tracker, self._axes = AxisTracker(), dict(axes or {})

    @contextmanager
    def attach(self) -> Iterator["EmbeddingReader"]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            stack.callback(setattr, self, "_activation", None)
            if self._site is not None:
                stack.enter_context(SiteHook(self._site, self._keep_site).attach(self._model))
                stack.enter_context(self._tracker.watch(self._model))
            else:
                for module in self._model.modules():
                    if isinstance(module, nn.Linear):
                        stack.callback(module.register_forward_pre_hook(self._keep_input).remove)
            yield self

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the input of a linear layer: of the last one, or of the one that was last in the first pass."""
        if self._last is not None and module is not self._last:
            return
        if args and isinstance(args[0], Tensor) and args[0].ndim >= 2:
            self._caller = module
            # a copy, as a later layer may work in place
            self._activation, self._axis = args[0].detach().clone(), args[0].ndim - 1

    def _keep_site(self, module: nn.Module, value: Any) -> None:
        """Keep the activations of the site."""
        assert self._site is not None
        tensor = read_activation(self._site, module, value)
        axis = self._axes.get(str(self._site))
        self._activation = tensor.detach().clone()
        self._axis = self._tracker.axis(self._site, module, tensor) if axis is None else axis

    def read(
        self,
        prediction: Prediction,
        n_rows: int | None = None,
        *,
        required: bool,
    ) -> Float[Tensor, "sample feature"]:
        """Return the embeddings of the samples in the last forward pass.

        Args:
            prediction: of that pass. Its logits stand in for embeddings that are not required where no linear layer is
                called.
            n_rows: number of rows in the batch, the first of which are the samples; None: as many as samples.
            required: whether clusters depend on the embeddings.

        Returns:
            One row per sample; NaN where a later batch does not reach the layer and embeddings are not required.

        Raises:
            InvalidArgument: if embeddings are required and the pass gave none.
        """
        found, self._activation = self._activation, None
        logits, tokens, n_rows = prediction.logits, prediction.tokens, n_rows or len(prediction.logits)
        # two axes as long as the batch do not tell which one holds the samples, unless a site does
        if found is not None and self._site is None and list(found.shape[:-1]).count(n_rows) > 1:
            found = None
        if found is not None and len(found) == n_rows:
            found = found[: len(logits)]
            self._last = self._caller
            site = Site("", position=None) if self._site is None else self._site
            positions = chosen_positions(site, found, self._axis, tokens)
            count = count_positions(found, self._axis, positions).clamp_min(1)
            embedding = (sum_positions(found, self._axis, positions) / count[:, None]).float()
            self._width = embedding.shape[1]
            return embedding
        if not required and self._width is None:
            return logits.detach().float()
        if not required:
            # a layer that this batch does not reach: nothing is similar to these samples
            return logits.new_full((len(logits), self._width or 1), torch.nan, dtype=torch.float32)
        reason = "the model calls no linear layer with one row per sample in each batch"
        if self._site is not None:
            reason = f"layer {self._site.name!r} gave none"
        raise InvalidArgument(
            f"KMeansClusters needs one embedding per sample, but {reason}; name a layer: "
            "KMeansClusters(n_clusters, embedding='...')"
        )
