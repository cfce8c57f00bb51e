"""Convolutions: the window, and the two weights they take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_ext._checks._common import FLOATS, require, require_bias, require_dtype, require_shape, require_values
from bigmodel_ext._checks.int8 import INT8_TILE_N, require_k
from bigmodel_ext._checks.sparse import require_panels


def conv2d_shape(
    x: Tensor,
    n: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, int, int, int]:
    """Check a convolution's window, and that x fits it; the output's shape."""
    numbers = (
        ("kernel_size", kernel_size, 2, 1),
        ("stride", stride, 2, 1),
        ("padding", padding, 4, 0),
        ("dilation", dilation, 2, 1),
    )
    for name, values, count, least in numbers:
        fits = len(values) == count and all(least <= v < 2**31 for v in values)
        require(fits, lambda: f"{name} must be {count} numbers of at least {least}, got {list(values)}")  # noqa: B023
    require(x.dim() == 4, lambda: f"x must have 4 dimensions, got shape {list(x.shape)}")
    b, c, h, w = x.shape
    require(h > 0 and w > 0, lambda: f"x must have pixels, got shape {list(x.shape)}")
    require(groups >= 1, lambda: f"groups must be at least 1, got {groups}")
    require(
        c > 0 and c % groups == 0,
        lambda: f"x must have a multiple of groups={groups} channels, got shape {list(x.shape)}",
    )
    require(n > 0 and n % groups == 0, lambda: f"the number of outputs must be a multiple of groups={groups}, got {n}")
    padded = (h + padding[0] + padding[1], w + padding[2] + padding[3])
    spans = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    require(
        padded[0] > spans[0] and padded[1] > spans[1],
        lambda: (
            f"x must be at least as large as the kernel, got padded {padded[0]}x{padded[1]} for "
            f"kernel_size {list(kernel_size)} with dilation {list(dilation)}"
        ),
    )
    return b, n, (padded[0] - spans[0] - 1) // stride[0] + 1, (padded[1] - spans[1] - 1) // stride[1] + 1


def check_int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    require_dtype("x", x, *FLOATS)
    require_dtype("weight", weight, torch.int8)
    require_dtype("weight_scale", weight_scale, torch.float32)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n = weight_scale.shape[0]
    conv2d_shape(x, n, kernel_size, stride, padding, dilation, groups)
    k = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
    require_k(k)
    if weight.dim() == 5:
        panels = -(-(n // groups) // INT8_TILE_N)
        require_shape("packed weight", weight, groups, panels, -(-k // 4) + 1, INT8_TILE_N, 4)
    else:
        require_shape("weight", weight, n, k)
    require_bias(bias, n)


def check_sparse_conv2d(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_channels: int,
    panel: int,
) -> None:
    require_dtype("x", x, *FLOATS, torch.float64)
    require_values(values, x)
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    conv2d_shape(x, out_channels, kernel_size, stride, padding, dilation, groups)
    k = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
    require_panels(values, crow, col, out_channels, k, panel, None)
    require_bias(bias, out_channels)
