"""Binary-coded linear layers."""

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
    require_shape,
)
from bigmodel_ext._checks.int8 import require_k

BINARY_MAX_BITS = 8
BINARY_TILE_N = 64
"""Outputs of a panel; see formats.binary_coded."""


def binary_words(k: int, group_size: int) -> int:
    """16-bit words that hold the signs of K inputs: each group begins with a word of its own."""
    return k // group_size * -(-group_size // 16) + -(-(k % group_size) // 16)


def require_binary_code(bits: int, group_size: int) -> None:
    require(1 <= bits <= BINARY_MAX_BITS, lambda: f"bits must be in [1, {BINARY_MAX_BITS}], got {bits}")
    fits = group_size >= 8 and group_size % 8 == 0
    require(fits, lambda: f"group_size must be a positive multiple of 8, got {group_size}")


def check_binary_coded_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    activation: str = "none",
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS)
    require_dtype("packed", packed, torch.uint8)
    require_dtype("scales", scales, torch.float16)
    require_features(x)
    require(out_features >= 0, lambda: f"out_features must not be negative, got {out_features}")
    require(packed.dim() == 5, lambda: f"packed must have 5 dimensions, got shape {list(packed.shape)}")
    k, panels, bits = x.shape[-1], -(-out_features // BINARY_TILE_N), packed.shape[2]
    require_binary_code(bits, group_size)
    require_shape("packed", packed, panels, binary_words(k, group_size), bits, BINARY_TILE_N, 2)
    require_shape("scales", scales, panels, -(-k // group_size), bits, BINARY_TILE_N)
    require_bias(bias, out_features)
    require_k(k)
