"""A linear layer with 1x4 blocks of int8 (see formats.block), activations quantized per row; exact in int32. Few rows
of activations are gathered for the stored blocks; for more the blocks are spread to a dense int8 weight in working
memory."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext.triton_kernels import int8_mm, quantize_rows, sparse_linear


def run(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    order: Tensor | None,
    weight_scale: Tensor,
    bias: Tensor | None,
    panel: int,
    activation: str,
) -> Tensor:
    """x [M,K]; all contiguous."""
    (m, k), n = x.shape, weight_scale.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    blocks = -(-k // 4)
    q, scale = quantize_rows.run(x)  # rows are padded with zeros, so the last block's missing inputs are 0
    if m <= sparse_linear.GATHERED_ROWS:
        weight = (values, crow, col, order)
        scales = (scale, weight_scale)
        sparse_linear.gather(q, *weight, bias, out, panel, blocks, activation, scales=scales)
        return out
    dense = sparse_linear.spread(values, crow, col, order, n, blocks, panel)
    int8_mm.launch_int8(q, dense, out, n, dense.shape[1], scale, weight_scale, bias, activation)
    return out
