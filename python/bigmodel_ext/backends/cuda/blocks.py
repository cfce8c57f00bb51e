"""Weights in square blocks, and with two of every four.

float32 values beside 16-bit activations are rounded to their dtype first, as autocast rounds a dense weight: tensor
cores take both operands in one dtype."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_ext import _checks, _dispatch

_CHUNK = 16  # bytes that one asynchronous copy moves


def _aligned(t: Tensor) -> Tensor:
    t = t.contiguous()
    return t if t.data_ptr() % _CHUNK == 0 else t.clone()


def _rows(x: Tensor) -> Tensor:
    """[M, K or a little more]: whole chunks to a row, with zeros behind what there is."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    padding = -rows.shape[1] % (_CHUNK // rows.element_size())
    return F.pad(rows, (0, padding)) if padding else _aligned(rows)


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _flat(out: Tensor) -> Tensor:
    return out.view(math.prod(out.shape[:-1]), out.shape[-1])


def block_sparse_linear(
    native: Any, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear", x, values, crow, col, bias, out_features)
    _checks.check_block_sparse_linear(x, values, crow, col, bias, out_features)
    out = x.new_empty((*x.shape[:-1], out_features))
    values, crow, col = _aligned(values.to(x.dtype)), _aligned(crow), _aligned(col)
    native.block_sparse_linear(_rows(x), values, crow, col, _wide(bias), _flat(out))
    return out


def block_sparse_linear_grad_input(
    native: Any, grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear_grad_input", grad, values, crow, col, in_features)
    _checks.check_block_sparse_linear_grad_input(grad, values, crow, col, in_features)
    out = grad.new_empty((*grad.shape[:-1], in_features))
    values, crow, col = _aligned(values.to(grad.dtype)), _aligned(crow), _aligned(col)
    scratch = crow.new_empty((-(-in_features // values.shape[1]), 2 * crow.shape[0] - 1))
    native.block_sparse_linear_grad_input(_rows(grad), values, crow, col, scratch, _flat(out))
    return out


def block_sparse_linear_grad_values(
    native: Any, grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear_grad_values", grad, x, crow, col, blocksize)
    _checks.check_block_sparse_linear_grad_values(grad, x, crow, col, blocksize)
    out = grad.new_empty((col.shape[0], blocksize, blocksize))
    crow, col, features = _aligned(crow), _aligned(col), (grad.shape[-1], x.shape[-1])
    native.block_sparse_linear_grad_values(_rows(grad), _rows(x), crow, col, out, *features)
    return out


def semi_sparse_linear(
    native: Any, x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear", x, values, index, bias, out_features)
    _checks.check_semi_sparse_linear(x, values, index, bias, out_features)
    out = x.new_empty((*x.shape[:-1], out_features))
    native.semi_sparse_linear(_rows(x), _aligned(values.to(x.dtype)), _aligned(index), _wide(bias), _flat(out))
    return out


def semi_sparse_linear_grad_input(native: Any, grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear_grad_input", grad, values, index, in_features)
    _checks.check_semi_sparse_linear_grad_input(grad, values, index, in_features)
    out = grad.new_empty((*grad.shape[:-1], in_features))
    native.semi_sparse_linear_grad_input(_rows(grad), _aligned(values.to(grad.dtype)), _aligned(index), _flat(out))
    return out


def semi_sparse_linear_grad_values(native: Any, grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear_grad_values", grad, x, index)
    _checks.check_semi_sparse_linear_grad_values(grad, x, index)
    out = grad.new_empty((*index.shape[:2], 8, 2, 32))
    features = (grad.shape[-1], x.shape[-1])
    native.semi_sparse_linear_grad_values(_rows(grad), _rows(x), _aligned(index), out, *features)
    return out


def int8_semi_sparse_linear(
    native: Any,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
) -> Tensor:
    _checks.check_int8_semi_sparse_linear(x, values, index, weight_scale, bias, activation)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()
    m, k = rows.shape
    q = x.new_empty((m, -(-k // _CHUNK) * _CHUNK), dtype=torch.int8)
    scale = x.new_empty(m, dtype=torch.float32)
    if bias is not None:
        bias = (bias.float() if bias.dtype is torch.float64 else bias).contiguous()
    out = x.new_empty((*x.shape[:-1], weight_scale.shape[0]))
    weights = _aligned(values), _aligned(index), weight_scale.contiguous(), bias
    native.int8_semi_sparse_linear(rows, *weights, _flat(out), activation, q, scale)
    return out
