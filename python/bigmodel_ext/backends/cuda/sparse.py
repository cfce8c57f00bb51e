"""Weights in panels of compressed sparse rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _reference
from bigmodel_ext.backends import sparse_patterns

FEW_ROWS = 8  # as in csrc/cuda/sparse_linear.h
TILE_ROWS = 128  # with more, spreading all of W once costs less than decoding its tiles for every 64 rows
DENSE_ENOUGH = 0.25  # a bit for each weight and simple arithmetic for each; below, a byte for each stored one is better


def pack_panel_csr(
    native: Any, weight: Tensor, mask: Tensor | None, panel: int, sort: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By torch's own operations on the device: once for a layer."""
    _checks.check_pack_panel_csr(weight, mask, panel, sort)
    return _reference.pack_panel_csr(weight, mask, panel, sort)


def _matrix(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _aligned(x: Tensor) -> Tensor:
    """x [M,K] with whole 16-byte pieces to a row: itself, or its columns in a wider copy."""
    m, k = x.shape
    pieces = 16 // x.element_size()
    if k % pieces == 0 and x.stride(1) == 1 and x.stride(0) % pieces == 0 and x.data_ptr() % 16 == 0:
        return x
    wide = x.new_empty(m, -(-k // pieces) * pieces)
    wide[:, :k] = x
    return wide[:, :k]


def _bias(bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    return (bias.float() if bias.dtype is torch.float64 else bias).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _spread(native: Any, values: Tensor, pattern: sparse_patterns.Pattern) -> Tensor:
    """Dense W [N,K]."""
    masks, units, source = sparse_patterns.bits(native, pattern)
    dense = values.new_empty((pattern.n, pattern.k))
    native.sparse_dense(values if source is None else values[source], masks, units, dense, True)
    return dense


def _pattern(
    native: Any, crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int
) -> sparse_patterns.Pattern:
    return sparse_patterns.of(native, crow, col, order, n, k, panel)


def sparse_linear(
    native: Any,
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
    _checks.check_sparse_linear(x, values, crow, col, bias, out_features, panel, order, activation)
    rows, values = _matrix(x), values.contiguous()
    m, k = rows.shape
    out = x.new_empty((m, out_features))
    pattern = _pattern(native, crow, col, order, out_features, k, panel)
    half = x.dtype is not torch.float32
    if out.numel() == 0:
        pass
    elif k == 0 or (m <= FEW_ROWS and not (half and values.dtype is x.dtype and pattern.density > DENSE_ENOUGH)):
        native.sparse_rows(
            rows.contiguous(), values, pattern.col, pattern.runs, panel, _bias(bias), None, None, out, activation
        )
    elif half and m <= TILE_ROWS:
        masks, units, source = sparse_patterns.bits(native, pattern)
        values = values.to(x.dtype)
        values = values if source is None else values[source]
        native.sparse_bits(_aligned(rows), values, masks, units, _bias(bias), out, activation)
    else:
        product = _product(rows, _spread(native, values.to(x.dtype), pattern).t()).float()
        product = product if bias is None else product + bias.float()
        out = _reference.activate(product, activation).to(x.dtype)
    return out.view(*x.shape[:-1], out_features)


def sparse_linear_grad_input(
    native: Any,
    grad: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    in_features: int,
    panel: int,
    order: Tensor | None = None,
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_input", grad, values, crow, col, in_features, panel, order)
    _checks.check_sparse_linear_grad_input(grad, values, crow, col, in_features, panel, order)
    rows, values = _matrix(grad), values.to(grad.dtype).contiguous()
    m, n = rows.shape
    pattern = _pattern(native, crow, col, order, n, in_features, panel)
    if m * n * in_features == 0:
        out = grad.new_zeros((m, in_features))
    elif grad.dtype is torch.float32 or m > TILE_ROWS:
        out = _product(rows, _spread(native, values, pattern))
    else:
        out = grad.new_empty((m, in_features))
        masks, units, source = sparse_patterns.bits(native, pattern)
        native.sparse_grad_input(_aligned(rows), values if source is None else values[source], masks, units, out)
    return out.view(*grad.shape[:-1], in_features)


def sparse_linear_grad_values(
    native: Any, grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_values", grad, x, crow, col, panel, order)
    _checks.check_sparse_linear_grad_values(grad, x, crow, col, panel, order)
    g, rows = _matrix(grad), _matrix(x)
    (m, n), k = g.shape, rows.shape[1]
    pattern = _pattern(native, crow, col, order, n, k, panel)
    if m == 0 or col.numel() == 0:
        return grad.new_zeros(col.shape)
    out = grad.new_empty(col.shape)
    masks, units, source = sparse_patterns.bits(native, pattern)
    if grad.dtype is torch.float32 or m > TILE_ROWS:
        native.sparse_dense(out, masks, units, _product(g.t(), rows).contiguous(), False)
    else:
        native.sparse_grad_values(_aligned(g), _aligned(rows), masks, units, out)
    return out if source is None else torch.empty_like(out).index_copy_(0, source, out)


def int8_sparse_linear(
    native: Any,
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
    _checks.check_int8_sparse_linear(x, values, crow, col, weight_scale, row_sum, bias, panel, order, activation)
    rows, n = _matrix(x), weight_scale.shape[0]
    m, k = rows.shape
    out = x.new_empty((m, n))
    pattern = _pattern(native, crow, col, order, n, -(-k // 4), panel)
    if out.numel():
        q, scale = torch.ops.bigmodel_ext.quantize_rows(rows)
        q = torch.nn.functional.pad(q, (0, -k % 16)) if k % 16 else q  # whole words, and rows aligned
        words = q.view(torch.int32)[:, : pattern.k] if k else q.to(torch.int32)
        blocks = values.contiguous().view(-1).view(torch.int32)
        epilogue = (_bias(bias), scale, weight_scale.contiguous(), out, activation)
        if m <= FEW_ROWS or k == 0:
            native.sparse_rows(words, blocks, pattern.col, pattern.runs, panel, *epilogue)
        else:
            masks, units, source = sparse_patterns.bits(native, pattern)
            blocks = blocks if source is None else blocks[source]
            native.sparse_int8_tiles(words, blocks, masks, units, *epilogue)
    return out.view(*x.shape[:-1], n)
