"""Divide a sparse tensor into its rows, one per sample, and join rows to a tensor of the same layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_neuroimp.errors import InvalidArgument

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc)


@dataclass(frozen=True)
class SparseKind:
    """Say what sparse rows have in common that can be joined to one tensor.

    Attributes:
        layout: of the whole tensor.
        dtype: of its values.
        shape: of a row, without the axis of the samples.
    """

    layout: torch.layout
    dtype: torch.dtype
    shape: tuple[int, ...]

    def from_data_list(self, rows: Sequence[Tensor]) -> Tensor:
        """Return one tensor of the layout.

        Args:
            rows: in COO layout, each of shape (1, ...).
        """
        joined = torch.cat(list(rows)).coalesce()
        return joined if self.layout == torch.sparse_coo else joined.to_sparse(layout=self.layout)


def sparse_rows(tensor: Tensor) -> tuple[list[Tensor], SparseKind]:
    """Return the rows of a sparse tensor, and what joins them again.

    Args:
        tensor: in COO layout, or in CSR or CSC layout with two axes; the samples are on axis 0.

    Returns:
        One row per sample, in COO layout, of shape (1, ...); and the kind that joins them.

    Raises:
        InvalidArgument: if it has another layout.

    >>> rows, kind = sparse_rows(torch.eye(3).to_sparse())
    >>> kind.from_data_list([rows[2], rows[0]]).to_dense()
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    if tensor.is_nested:
        raise InvalidArgument(
            "a batch holds a nested tensor, which cannot be divided into samples; let the loader's collate_fn return "
            "torch.nested.to_padded_tensor(x, 0.0) and a mask, which forward_fn uses"
        )
    if tensor.layout != torch.sparse_coo and not (tensor.layout in _COMPRESSED and tensor.ndim == 2):
        raise InvalidArgument(
            f"a batch holds a tensor of layout {tensor.layout} with {tensor.ndim} axes, which cannot be divided into "
            "samples; let the loader's collate_fn return it with .to_dense()"
        )
    kind = SparseKind(tensor.layout, tensor.dtype, tuple(tensor.shape[1:]))
    whole = tensor.detach()
    whole = (whole if whole.layout == torch.sparse_coo else whole.to_sparse_coo()).coalesce()
    indices, values = whole.indices(), whole.values()
    counts = torch.bincount(indices[0], minlength=len(tensor)).tolist()  # the first index is in order
    rows = [
        torch.sparse_coo_tensor(
            torch.cat([torch.zeros_like(where[:1]), where[1:]]),
            entries,
            (1, *kind.shape),
            is_coalesced=True,
            check_invariants=False,
        )
        for where, entries in zip(indices.split(counts, 1), values.split(counts), strict=True)
    ]
    return rows, kind
