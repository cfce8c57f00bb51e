"""Dense int8 matrices and layers."""

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
    require_matrix,
    require_shape,
)

INT8_MAX_K = 131_071
"""Largest K for which |sum of K products of two int8| < 2^31: 128 * 128 * 131071 = 2147467264."""

INT8_TILE_N = 64
"""Columns of a packed int8 weight's panel; see formats.int8."""


def require_k(k: int) -> None:
    require(k <= INT8_MAX_K, lambda: f"K must be at most {INT8_MAX_K} for an exact int32 sum, got {k}")


def check_quantize_rows(x: Tensor) -> None:
    require_dtype("x", x, *FLOATS)
    require_matrix("x", x)


def check_int8_mm(a: Tensor, b: Tensor) -> None:
    for name, t in (("a", a), ("b", b)):
        require_dtype(name, t, torch.int8)
        require_matrix(name, t)
    require(a.shape[1] == b.shape[1], lambda: f"a [M,K] and b [N,K] differ in K: {list(a.shape)} and {list(b.shape)}")
    require_k(a.shape[1])


def check_int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    input_scale: Tensor | None = None,
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS)
    require_dtype("weight", weight, torch.int8)
    require_dtype("weight_scale", weight_scale, torch.float32)
    require_features(x)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    if weight.dim() == 4:
        require_shape("packed weight", weight, -(-n // INT8_TILE_N), -(-k // 4) + 1, INT8_TILE_N, 4)
    else:
        require_shape("weight", weight, n, k)
    require_bias(bias, n)
    if input_scale is not None:
        require_dtype("input_scale", input_scale, torch.float32)
        require_shape("input_scale", input_scale)
    require_k(k)


def check_int8_weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS)
    require_dtype("weight", weight, torch.int8)
    require_dtype("weight_scale", weight_scale, torch.float32)
    require_features(x)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    require_shape("packed weight", weight, -(-n // INT8_TILE_N), -(-k // 4) + 1, INT8_TILE_N, 4)
    require_bias(bias, n)
