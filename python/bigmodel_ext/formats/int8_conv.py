"""INT8 convolution weights as the kernel reads them.

A canonical weight is int8 [N,Cg,kh,kw], Cg = C / groups. Its rows are [N,K], K = kh * kw * Cg with channels fastest.
They are packed as formats.int8 packs a linear layer's, each group for itself: int8
[groups, ceil(Ng/64), ceil(K/4) + 1, 64, 4]. Groups of few outputs would fill their panels with zeros: several groups
whose outputs are no multiple of 64 stay rows, and the kernel packs (or, depthwise, reads) them as it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_ext._checks import INT8_TILE_N
from bigmodel_ext._reference import conv_rows, unpack_int8_conv
from bigmodel_ext.formats import int8


def packed_shape(n: int, k: int, groups: int) -> tuple[int, ...]:
    """The shape of :func:`pack`'s result."""
    group_outputs = n // groups
    if groups > 1 and group_outputs % INT8_TILE_N:
        return n, k
    return groups, -(-group_outputs // INT8_TILE_N), -(-k // 4) + 1, INT8_TILE_N, 4


def pack(weight_q: Tensor, groups: int = 1) -> Tensor:
    """int8 [N,Cg,kh,kw] -> the form for the kernel."""
    if weight_q.dtype != torch.int8 or weight_q.dim() != 4:
        raise TypeError(f"weight_q must be int8 [N,Cg,kh,kw], got {weight_q.dtype} {list(weight_q.shape)}")
    n = weight_q.shape[0]
    if groups < 1 or n % groups:
        raise ValueError(f"weight_q must have a multiple of groups={groups} outputs, got {n}")
    rows = conv_rows(weight_q)
    if len(packed_shape(n, rows.shape[1], groups)) == 2:
        return rows.contiguous()
    return torch.stack([int8.pack(group) for group in rows.view(groups, n // groups, -1)])


def unpack(packed: Tensor, n: int, kernel_size: Sequence[int], group_channels: int) -> Tensor:
    """The inverse of :func:`pack`: int8 [N,Cg,kh,kw], contiguous."""
    return unpack_int8_conv(packed, n, kernel_size, group_channels).contiguous()
