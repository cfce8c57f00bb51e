"""1x4 blocks of int8: panel-CSR (see formats.csr) whose entries are four neighbouring weights of a row.

values       int8 [blocks, 4]
col          uint8 [blocks]                block within the panel
crow         int32 [panels * N + 1]        as in formats.csr, over ceil(K/4) block columns
row_sum      int32 [N]                     sum of the row's stored weights (the unsigned multiply's compensation)
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference import sparse_to_dense
from bigmodel_ext.formats import csr

PANEL = 128


def pack(weight_q: Tensor, panel: int = PANEL) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """int8 [N,K] -> (values, crow, col, row_sum). A block is stored if one of its four weights is not 0."""
    values, crow, col = csr.pack(_blocks(weight_q), panel=panel)
    return values.view(torch.int8).view(-1, 4), crow, col, weight_q.sum(1, dtype=torch.int32)


def pack_sorted(weight_q: Tensor, panel: int = PANEL) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`pack` and ``csr.sort_rows`` in one: (values, crow, col, order, row_sum)."""
    values, crow, col, order = csr.pack_sorted(_blocks(weight_q), panel=panel)
    return values.view(torch.int8).view(-1, 4), crow, col, order, weight_q.sum(1, dtype=torch.int32)


def _blocks(weight_q: Tensor) -> Tensor:
    """Blocks as int32 [N, ceil(K/4)], which is 0 where all four weights are."""
    if weight_q.dtype != torch.int8 or weight_q.dim() != 2:
        raise TypeError(f"weight_q must be int8 [N,K], got {weight_q.dtype} {list(weight_q.shape)}")
    n, k = weight_q.shape
    padded = torch.nn.functional.pad(weight_q, (0, -k % 4)).contiguous()
    if padded.storage_offset() % 4:  # torch can't view it as int32
        padded = padded.clone()
    return padded.view(-1).view(torch.int32).view(n, -(-k // 4))


def unpack(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    out_features: int,
    in_features: int,
    panel: int = PANEL,
    order: Tensor | None = None,
) -> Tensor:
    """The inverse of :func:`pack`, and of ``csr.sort_rows`` after it: int8 [N,K]."""
    dense = sparse_to_dense(values, crow, col, out_features, -(-in_features // 4), panel, order)
    return dense.flatten(1)[:, :in_features].contiguous()
