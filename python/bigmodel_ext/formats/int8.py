"""INT8 weights as the kernels read them.

A canonical weight is int8 [N,K]. Packed, it is int8 [ceil(N/64), ceil(K/4) + 1, 64, 4], zero-padded: slab 0 of a panel
holds, as 64 little-endian int32, 128 * sum_k weight_q[n,k] (what the unsigned-by-signed multiply adds too much when
activations are stored as q + 128), slab 1 + g holds weight_q[n, 4g:4g+4] for the panel's 64 outputs side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._checks import INT8_TILE_N
from bigmodel_ext._native import new_weight
from bigmodel_ext._reference import unpack_int8


def pack(weight_q: Tensor) -> Tensor:
    """int8 [N,K] -> packed int8 [ceil(N/64), ceil(K/4) + 1, 64, 4]."""
    if weight_q.dtype != torch.int8 or weight_q.dim() != 2:
        raise TypeError(f"weight_q must be int8 [N,K], got {weight_q.dtype} {list(weight_q.shape)}")
    n, k = weight_q.shape
    panels, groups = -(-n // INT8_TILE_N), -(-k // 4)
    padded = weight_q.new_zeros((panels * INT8_TILE_N, groups * 4))
    padded[:n, :k] = weight_q
    sums = padded.sum(1, dtype=torch.int32).mul_(128).view(torch.int8).view(panels, 1, INT8_TILE_N, 4)
    slabs = padded.view(panels, INT8_TILE_N, groups, 4).transpose(1, 2)
    packed = new_weight(weight_q, (panels, groups + 1, INT8_TILE_N, 4))
    packed[:, :1], packed[:, 1:] = sums, slabs
    return packed


def unpack(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of :func:`pack`: int8 [N,K], contiguous."""
    return unpack_int8(packed, out_features, in_features).contiguous()
