"""Row quantization and int8 products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_ext._reference.dropout import activate

SMALLEST_QUANTIZABLE = 2.0**-119


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    absmax = x.abs().amax(dim=1) if x.shape[1] else x.new_zeros(x.shape[0])
    finite = absmax.isfinite()  # amax propagates NaN
    usable = finite & (absmax >= SMALLEST_QUANTIZABLE)
    # A division, where `127.0 / absmax` would multiply by the rounded reciprocal.
    inverse = torch.where(usable, torch.full_like(absmax, 127.0).div(absmax), 0.0)
    q = torch.where(usable[:, None], x, 0.0).mul(inverse[:, None]).round().to(torch.int8)
    scale = torch.where(usable, absmax / 127.0, torch.where(finite, 0.0, math.nan))
    return q, scale


def quantize_fixed(x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """With one scale for all of x; see functional.int8_linear."""
    x, tiny = x.float(), input_scale < SMALLEST_QUANTIZABLE
    valid = (input_scale >= 0) & input_scale.isfinite()
    inverse = torch.where(valid & ~tiny, torch.ones_like(input_scale).div(input_scale), 0.0)
    finite = x.isfinite().all(dim=1)
    q = torch.where(finite[:, None], x, 0.0).mul(inverse).clamp(-127, 127).round().to(torch.int8)
    scale = torch.where(tiny, 0.0, input_scale)
    return q, torch.where(finite & valid, scale, math.nan)


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().T).to(torch.int32)  # every partial sum is below 2^53: exact


def unpack_int8(packed: Tensor, n: int, k: int) -> Tensor:
    """[ceil(N/64), ceil(K/4)+1, 64, 4] -> [N,K]; slab 0 holds the column sums (see formats.int8)."""
    panels, slabs, columns, group = packed.shape
    return packed[:, 1:].permute(0, 2, 1, 3).reshape(panels * columns, (slabs - 1) * group)[:n, :k]


def _scaled(
    acc: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, x: Tensor, activation: str
) -> Tensor:
    y = acc.float() * x_scale[:, None] * weight_scale
    if bias is not None:
        y = y + bias.float()
    return activate(y, activation).to(x.dtype).reshape(*x.shape[:-1], weight_scale.shape[0])


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    input_scale: Tensor | None = None,
) -> Tensor:
    n, k = weight_scale.shape[0], x.shape[-1]
    if weight.dim() == 4:
        weight = unpack_int8(weight, n, k)
    rows = x.reshape(math.prod(x.shape[:-1]), k)
    q, x_scale = quantize_rows(rows) if input_scale is None else quantize_fixed(rows, input_scale)
    return _scaled(int8_mm(q, weight), x_scale, weight_scale, bias, x, activation)


def int8_weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    y = (x.float() @ unpack_int8(weight, weight_scale.shape[0], x.shape[-1]).float().T) * weight_scale
    if bias is not None:
        y = y + bias.float()
    return activate(y, activation).to(x.dtype)
