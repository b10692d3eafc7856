"""EmbeddingReader: each sample's embedding, from a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_neuroimp.capture.axes import AxisTracker
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.positions import chosen_positions, count_positions, sum_positions
from lightning_neuroimp.capture.site_tensor import read
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.site import Site


class EmbeddingReader:
    """Reads each sample's embedding from a forward pass.

    Args:
        model: whose linear layers are watched.
        layer: whose output is the embedding; None: the input of the linear layer that the first pass called last.

    Raises:
        ValueError: if there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str | Site | None) -> None:
        self._model = model
        sites = () if layer is None else find_sites(model, layer)
        if len(sites) > 1:
            raise ValueError(f"the embedding must be one layer, got {', '.join(map(str, sites))}")
        self._site = sites[0] if sites else None
        self._embedding: Tensor | None = None
        self._caller: nn.Module | None = None  # whose input it is
        self._last: nn.Module | None = None  # the same for all passes once one has been read
        self._axis = -1
        self._width: int | None = None
        self._tracker = AxisTracker()

    @contextmanager
    def attach(self) -> Iterator["EmbeddingReader"]:
        """Hold the hooks inside this context."""
        handles = []
        try:
            if self._site is not None:
                tap = SiteHook(self._site, self._keep_site)
                with tap.attach(self._model), self._tracker.watch(self._model):
                    yield self
            else:
                for module in self._model.modules():
                    if isinstance(module, nn.Linear):
                        handles.append(module.register_forward_pre_hook(self._keep_input))
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._embedding = None

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._last is not None and module is not self._last:
            return
        if args and isinstance(args[0], Tensor) and args[0].ndim >= 2:
            self._caller = module
            # a copy, as a layer behind may work in place
            self._embedding, self._axis = args[0].detach().clone(), args[0].ndim - 1

    def _keep_site(self, module: nn.Module, value: Any) -> None:
        assert self._site is not None
        tensor = read(self._site, module, value)
        self._embedding, self._axis = tensor.detach().clone(), self._tracker.axis(self._site, module, tensor)

    def read(
        self,
        logits: Float[Tensor, "sample class"],
        tokens: Bool[Tensor, "sample token"] | None,
        *,
        required: bool,
    ) -> Float[Tensor, "sample feature"]:
        """The embedding of the forward pass that gave these logits.

        Args:
            logits: they stand in where the model has no linear layer and the embedding is not `required`.
            tokens: True where a token is no padding.
            required: whether clusters depend on it.

        Raises:
            ValueError: if there is none.
        """
        found, self._embedding = self._embedding, None
        if found is not None and len(found) == len(logits):
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
            # a layer that this batch does not reach: these samples are near to nothing
            return logits.new_full((len(logits), self._width or 1), torch.nan, dtype=torch.float32)
        raise ValueError(
            "KMeansClusters needs one embedding per sample, but "
            + (
                f"layer {self._site.name!r} gave none"
                if self._site is not None
                else "the model calls no linear layer with one row per sample in each batch"
            )
            + "; name a layer: KMeansClusters(n_clusters, embedding='...')"
        )
