"""Weights in panels of compressed sparse rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _native
from bigmodel_ext.backends import transposed
from bigmodel_ext.backends.cpu._rows import output_rows


def pack_panel_csr(
    weight: Tensor, mask: Tensor | None, panel: int, sort: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _checks.check_pack_panel_csr(weight, mask, panel, sort)
    weight = weight.contiguous()  # here, because it is read twice
    kept = None if mask is None else mask.contiguous().view(torch.uint8)
    segments = -(-weight.size(1) // panel) * weight.size(0)
    crow = weight.new_empty(segments + 1, dtype=torch.int32)
    order = crow.new_empty(segments if sort else 0)
    stored = _native.count_panel_csr(weight, kept, panel, crow, order if sort else None)
    values, col = weight.new_empty(stored), weight.new_empty(stored, dtype=torch.uint8)
    _native.fill_panel_csr(weight, kept, panel, crow, order if sort else None, values, col)
    return values, crow, col, order


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_features: int,
    panel: int,
    order: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear", x, values, crow, col, bias, out_features, panel, order, activation)
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else output_rows(x, out_features)
    _native.sparse_linear(x, values, crow, col, order, bias, out, panel, activation)
    return out


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_input", grad, values, crow, col, in_features, panel, order)
    out = output_rows(grad, in_features, "in_features")
    n = grad.size(-1)
    if grad.numel() < transposed.FEW_ROWS * max(n, 1) or values.shape != col.shape:
        _native.sparse_linear_grad_input(grad, values, crow, col, order, out, panel)
        return out
    found = transposed.of(crow, col, order, n, in_features, panel)
    permuted = values.new_empty(values.size(0))
    _native.permute_values(values, found.source, permuted)
    _native.sparse_linear(grad, permuted, found.crow, found.col, found.order, None, out, found.panel, "none")
    return out


def sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_values", grad, x, crow, col, panel, order)
    out = grad.new_empty(col.shape)
    _native.sparse_linear_grad_values(grad, x, crow, col, order, out, panel)
    return out


def int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None,
    panel: int,
    order: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    n = weight_scale.numel()
    out = x.new_empty(x.size(0), n) if x.dim() == 2 else output_rows(x, n)
    _native.int8_sparse_linear(x, values, crow, col, order, weight_scale, row_sum, bias, out, panel, activation)
    return out
