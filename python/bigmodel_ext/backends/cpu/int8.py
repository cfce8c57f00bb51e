"""Dense int8 matrices and layers."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _checks, _native
from bigmodel_ext.backends.cpu._rows import output_rows


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() != 2:
        _checks.check_quantize_rows(x)  # raises
    m = x.size(0)
    q, scale = x.new_empty(m, x.size(1), dtype=torch.int8), x.new_empty(m, dtype=torch.float32)
    _native.quantize_rows(x, q, scale)
    return q, scale


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() != 2 or b.dim() != 2:
        _checks.check_int8_mm(a, b)  # raises
    out = a.new_empty(a.size(0), b.size(0), dtype=torch.int32)
    _native.int8_mm(a, b, out)
    return out


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    input_scale: Tensor | None = None,
) -> Tensor:
    n = weight_scale.numel()
    out = x.new_empty(x.size(0), n) if x.dim() == 2 else output_rows(x, n)  # numbers cost half as much as a tuple
    _native.int8_linear(x, weight, weight_scale, bias, out, activation, input_scale)
    return out


def int8_weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    out = output_rows(x, weight_scale.numel())
    _native.int8_weight_only_linear(x, weight, weight_scale, bias, out, activation)
    return out
