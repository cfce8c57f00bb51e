"""Weights in square blocks, and with two of every four."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._checks._common import (
    FLOATS,
    require,
    require_activation,
    require_bias,
    require_dtype,
    require_features,
    require_pair,
    require_shape,
    require_values,
)
from bigmodel_ext._checks.int8 import require_k

BLOCK_SIZES = (16, 32, 64)
"""Sizes of the square blocks of formats.block_sparse."""


def _require_blocks(values: Tensor, crow: Tensor, col: Tensor, n: int) -> None:
    size = values.shape[1] if values.dim() == 3 else 0
    require(
        size in BLOCK_SIZES and values.shape[2] == size,
        lambda: f"values must have shape [blocks, S, S] with S 16, 32 or 64, got {list(values.shape)}",
    )
    _require_block_indices(crow, col, values.shape[0], n, size)


def _require_block_indices(crow: Tensor, col: Tensor, count: int, n: int, size: int) -> None:
    require_dtype("crow", crow, torch.int32)
    require_dtype("col", col, torch.int32)
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    require_shape("crow", crow, -(-n // size) + 1)
    require_shape("col", col, count)


def check_block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> None:
    require_dtype("x", x, *FLOATS, torch.float64)
    require_values(values, x)
    require_features(x)
    _require_blocks(values, crow, col, out_features)
    require_bias(bias, out_features)


def check_block_sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int
) -> None:
    require_dtype("grad", grad, *FLOATS, torch.float64)
    require_values(values, grad)
    require_features(grad)
    require(in_features >= 0, lambda: f"in_features must not be negative, got {in_features}")
    _require_blocks(values, crow, col, grad.shape[-1])


def check_block_sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int) -> None:
    require_pair(grad, x)
    require(blocksize in BLOCK_SIZES, lambda: f"blocksize must be 16, 32 or 64, got {blocksize}")
    require(col.dim() == 1, lambda: f"col must be [blocks], got shape {list(col.shape)}")
    _require_block_indices(crow, col, col.shape[0], grad.shape[-1], blocksize)


def _require_tiles(values: Tensor | None, index: Tensor, n: int, k: int, tile: tuple[int, ...] = (8, 2, 32)) -> None:
    require_dtype("index", index, torch.uint8)
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    require(k >= 0, lambda: f"in_features must not be negative, got {k}")
    require_shape("index", index, -(-n // 32), -(-k // 32), 32, 4)
    if values is not None:
        require_shape("values", values, -(-n // 32), -(-k // 32), *tile)


def check_semi_sparse_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int) -> None:
    require_dtype("x", x, *FLOATS, torch.float64)
    require_values(values, x)
    require_features(x)
    _require_tiles(values, index, out_features, x.shape[-1])
    require_bias(bias, out_features)


def check_semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> None:
    require_dtype("grad", grad, *FLOATS, torch.float64)
    require_values(values, grad)
    require_features(grad)
    _require_tiles(values, index, grad.shape[-1], in_features)


def check_semi_sparse_linear_grad_values(grad: Tensor, x: Tensor, index: Tensor) -> None:
    require_pair(grad, x)
    _require_tiles(None, index, grad.shape[-1], x.shape[-1])


def check_int8_semi_sparse_linear(
    x: Tensor, values: Tensor, index: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS)
    require_dtype("values", values, torch.int8)
    require_dtype("weight_scale", weight_scale, torch.float32)
    require_features(x)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    _require_tiles(values, index, n, k, (32, 16))
    require_bias(bias, n)
    require_k(k)
