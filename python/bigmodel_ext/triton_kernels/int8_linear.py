"""A linear layer with int8 weights, activations quantized per row or with one given scale: two kernels, one that
quantizes and one that multiplies and finishes (scales, bias, activation, one rounding)."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext.triton_kernels import int8_mm, quantize_rows


def run(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str, input_scale: Tensor | None
) -> Tensor:
    """x [M,K]; weight int8 [N,K] or packed; bias [N]; all contiguous."""
    (m, k), n = x.shape, weight_scale.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    q, scale = quantize_rows.run(x, input_scale)
    int8_mm.launch_int8(q, weight, out, n, k, scale, weight_scale, bias, activation)
    return out
