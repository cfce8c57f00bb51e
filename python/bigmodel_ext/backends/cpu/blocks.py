"""Weights in square blocks, and with two of every four."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _native, _reference
from bigmodel_ext.backends.cpu._rows import output_rows


def block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear", x, values, crow, col, bias, out_features)
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else output_rows(x, out_features)
    _native.block_sparse_linear(x, values, crow, col, bias, out)
    return out


def block_sparse_linear_grad_input(grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear_grad_input", grad, values, crow, col, in_features)
    out = output_rows(grad, in_features, "in_features")
    _native.block_sparse_linear_grad_input(grad, values, crow, col, out)
    return out


def block_sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear_grad_values", grad, x, crow, col, blocksize)
    if blocksize not in _checks.BLOCK_SIZES or col.dim() != 1:
        _checks.check_block_sparse_linear_grad_values(grad, x, crow, col, blocksize)  # raises
    out = grad.new_empty(col.size(0), blocksize, blocksize)
    _native.block_sparse_linear_grad_values(grad, x, crow, col, out)
    return out


def semi_sparse_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear", x, values, index, bias, out_features)
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else output_rows(x, out_features)
    _native.semi_sparse_linear(x, values, index, bias, out)
    return out


def semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear_grad_input", grad, values, index, in_features)
    out = output_rows(grad, in_features, "in_features")
    _native.semi_sparse_linear_grad_input(grad, values, index, out)
    return out


def semi_sparse_linear_grad_values(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear_grad_values", grad, x, index)
    if index.dim() != 4:
        _checks.check_semi_sparse_linear_grad_values(grad, x, index)  # raises
    out = grad.new_empty(index.size(0), index.size(1), 8, 2, 32)
    _native.semi_sparse_linear_grad_values(grad, x, index, out)
    return out


def int8_semi_sparse_linear(
    x: Tensor, values: Tensor, index: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    """Spread out in each call and multiplied by int8_linear's kernel: right, and no faster than that."""
    _checks.check_int8_semi_sparse_linear(x, values, index, weight_scale, bias, activation)
    weight = _reference.int8_semi_to_dense(values, index, weight_scale.shape[0], x.shape[-1])
    out = output_rows(x, weight_scale.shape[0])
    _native.int8_linear(x, weight.contiguous(), weight_scale, bias, out, activation, None)
    return out
