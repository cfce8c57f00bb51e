"""Every op's argument check: what it takes, and the error for anything else.

A check serves the op's fake (so that ``torch.compile`` and ``meta`` tensors see the same errors) and its reference; the
compiled kernels repeat it in C++ before they touch memory. Dimensions: M rows of activations, N outputs, K inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("layer", "rms")
ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "softplus")

INT8_MAX_K = 131_071
"""Largest K for which |sum of K products of two int8| < 2^31: 128 * 128 * 131071 = 2147467264."""

INT8_TILE_N = 64
"""Columns of a packed int8 weight's panel; see formats.int8."""

BLOCK_SIZES = (16, 32, 64)
"""Sizes of the square blocks of formats.block_sparse."""


def require(condition: bool, message: Callable[[], str]) -> None:
    if not condition:
        raise ValueError(message())


def _require_dtype(name: str, x: Tensor, *allowed: torch.dtype) -> None:
    if x.dtype not in allowed:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be {wanted}, got {str(x.dtype).removeprefix('torch.')}")


def _require_shape(name: str, x: Tensor, *shape: int) -> None:
    require(tuple(x.shape) == shape, lambda: f"{name} must have shape {list(shape)}, got {list(x.shape)}")


def _require_matrix(name: str, x: Tensor) -> None:
    require(x.dim() == 2, lambda: f"{name} must have 2 dimensions, got shape {list(x.shape)}")


def _require_features(x: Tensor) -> None:
    require(x.dim() >= 1, lambda: f"x must have at least 1 dimension, got shape {list(x.shape)}")


def _require_bias(bias: Tensor | None, n: int) -> None:
    if bias is not None:
        _require_dtype("bias", bias, *FLOATS, torch.float64)
        _require_shape("bias", bias, n)


def _require_k(k: int) -> None:
    require(k <= INT8_MAX_K, lambda: f"K must be at most {INT8_MAX_K} for an exact int32 sum, got {k}")


def check_quantize_rows(x: Tensor) -> None:
    _require_dtype("x", x, *FLOATS)
    _require_matrix("x", x)


def check_int8_mm(a: Tensor, b: Tensor) -> None:
    for name, t in (("a", a), ("b", b)):
        _require_dtype(name, t, torch.int8)
        _require_matrix(name, t)
    require(a.shape[1] == b.shape[1], lambda: f"a [M,K] and b [N,K] differ in K: {list(a.shape)} and {list(b.shape)}")
    _require_k(a.shape[1])


def check_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    _require_dtype("x", x, *FLOATS)
    _require_dtype("weight", weight, torch.int8)
    _require_dtype("weight_scale", weight_scale, torch.float32)
    _require_features(x)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    if weight.dim() == 4:
        _require_shape("packed weight", weight, -(-n // INT8_TILE_N), -(-k // 4) + 1, INT8_TILE_N, 4)
    else:
        _require_shape("weight", weight, n, k)
    _require_bias(bias, n)
    _require_k(k)


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
    _require_dtype("x", x, *FLOATS)
    _require_dtype("weight", weight, torch.int8)
    _require_dtype("weight_scale", weight_scale, torch.float32)
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n = weight_scale.shape[0]
    conv2d_shape(x, n, kernel_size, stride, padding, dilation, groups)
    k = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
    _require_k(k)
    if weight.dim() == 5:
        panels = -(-(n // groups) // INT8_TILE_N)
        _require_shape("packed weight", weight, groups, panels, -(-k // 4) + 1, INT8_TILE_N, 4)
    else:
        _require_shape("weight", weight, n, k)
    _require_bias(bias, n)


def _check_sparse(values: Tensor, crow: Tensor, col: Tensor, n: int, k: int, panel: int, order: Tensor | None) -> None:
    _require_dtype("crow", crow, torch.int32)
    _require_dtype("col", col, torch.uint8)
    require(1 <= panel <= 256, lambda: f"panel must be in [1, 256], got {panel}")
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    _require_shape("crow", crow, -(-k // panel) * n + 1)
    _require_shape("col", col, values.shape[0])
    if order is not None:
        _require_dtype("order", order, torch.int32)
        _require_shape("order", order, -(-k // panel) * n)


def check_pack_panel_csr(weight: Tensor, mask: Tensor | None, panel: int, sort: bool) -> None:
    _require_dtype("weight", weight, *FLOATS, torch.float64, torch.int32)
    require(weight.dim() == 2, lambda: f"weight must be [N,K], got shape {list(weight.shape)}")
    require(1 <= panel <= 256, lambda: f"panel must be in [1, 256], got {panel}")
    require(
        mask is None or (mask.shape == weight.shape and mask.dtype == torch.bool),
        lambda: f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}",  # type: ignore[union-attr]
    )


def check_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_features: int,
    panel: int,
    order: Tensor | None = None,
) -> None:
    _require_dtype("x", x, *FLOATS, torch.float64)
    _require_dtype("values", values, *dict.fromkeys((torch.float32, x.dtype)))
    _require_features(x)
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    _check_sparse(values, crow, col, out_features, x.shape[-1], panel, order)
    _require_bias(bias, out_features)


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
    _require_dtype("x", x, *FLOATS, torch.float64)
    _require_dtype("values", values, *dict.fromkeys((torch.float32, x.dtype)))
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    conv2d_shape(x, out_channels, kernel_size, stride, padding, dilation, groups)
    k = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
    _check_sparse(values, crow, col, out_channels, k, panel, None)
    _require_bias(bias, out_channels)


def check_sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> None:
    _require_dtype("grad", grad, *FLOATS, torch.float64)
    _require_dtype("values", values, *dict.fromkeys((torch.float32, grad.dtype)))
    _require_features(grad)
    require(in_features >= 0, lambda: f"in_features must not be negative, got {in_features}")
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    _check_sparse(values, crow, col, grad.shape[-1], in_features, panel, order)


def check_sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> None:
    _require_dtype("grad", grad, *FLOATS, torch.float64)
    _require_dtype("x", x, grad.dtype)
    _require_features(x)
    _require_shape("grad", grad, *x.shape[:-1], grad.shape[-1])
    _check_sparse(col, crow, col, grad.shape[-1], x.shape[-1], panel, order)


def _require_values(values: Tensor, x: Tensor) -> None:
    _require_dtype("values", values, *dict.fromkeys((torch.float32, x.dtype)))


def _require_blocks(values: Tensor, crow: Tensor, col: Tensor, n: int) -> None:
    size = values.shape[1] if values.dim() == 3 else 0
    require(
        size in BLOCK_SIZES and values.shape[2] == size,
        lambda: f"values must have shape [blocks, S, S] with S 16, 32 or 64, got {list(values.shape)}",
    )
    _require_block_indices(crow, col, values.shape[0], n, size)


def _require_block_indices(crow: Tensor, col: Tensor, count: int, n: int, size: int) -> None:
    _require_dtype("crow", crow, torch.int32)
    _require_dtype("col", col, torch.int32)
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    _require_shape("crow", crow, -(-n // size) + 1)
    _require_shape("col", col, count)


def _require_pair(grad: Tensor, x: Tensor) -> None:
    """The gradient of the output and the input that it came from."""
    _require_dtype("grad", grad, *FLOATS, torch.float64)
    _require_dtype("x", x, grad.dtype)
    _require_features(x)
    _require_shape("grad", grad, *x.shape[:-1], grad.shape[-1])


def check_block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> None:
    _require_dtype("x", x, *FLOATS, torch.float64)
    _require_values(values, x)
    _require_features(x)
    _require_blocks(values, crow, col, out_features)
    _require_bias(bias, out_features)


def check_block_sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int
) -> None:
    _require_dtype("grad", grad, *FLOATS, torch.float64)
    _require_values(values, grad)
    _require_features(grad)
    require(in_features >= 0, lambda: f"in_features must not be negative, got {in_features}")
    _require_blocks(values, crow, col, grad.shape[-1])


def check_block_sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int) -> None:
    _require_pair(grad, x)
    require(blocksize in BLOCK_SIZES, lambda: f"blocksize must be 16, 32 or 64, got {blocksize}")
    require(col.dim() == 1, lambda: f"col must be [blocks], got shape {list(col.shape)}")
    _require_block_indices(crow, col, col.shape[0], grad.shape[-1], blocksize)


def _require_tiles(values: Tensor | None, index: Tensor, n: int, k: int) -> None:
    _require_dtype("index", index, torch.uint8)
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    require(k >= 0, lambda: f"in_features must not be negative, got {k}")
    _require_shape("index", index, -(-n // 32), -(-k // 32), 32, 4)
    if values is not None:
        _require_shape("values", values, -(-n // 32), -(-k // 32), 8, 2, 32)


def check_semi_sparse_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int) -> None:
    _require_dtype("x", x, *FLOATS, torch.float64)
    _require_values(values, x)
    _require_features(x)
    _require_tiles(values, index, out_features, x.shape[-1])
    _require_bias(bias, out_features)


def check_semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> None:
    _require_dtype("grad", grad, *FLOATS, torch.float64)
    _require_values(values, grad)
    _require_features(grad)
    _require_tiles(values, index, grad.shape[-1], in_features)


def check_semi_sparse_linear_grad_values(grad: Tensor, x: Tensor, index: Tensor) -> None:
    _require_pair(grad, x)
    _require_tiles(None, index, grad.shape[-1], x.shape[-1])


def check_int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None,
    panel: int,
    order: Tensor | None = None,
) -> None:
    _require_dtype("x", x, *FLOATS)
    _require_dtype("values", values, torch.int8)
    _require_dtype("weight_scale", weight_scale, torch.float32)
    _require_dtype("row_sum", row_sum, torch.int32)
    _require_features(x)
    require(
        values.dim() == 2 and values.shape[1] == 4, lambda: f"values must be [blocks,4], got shape {list(values.shape)}"
    )
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    _require_shape("row_sum", row_sum, n)
    _check_sparse(values, crow, col, n, -(-k // 4), panel, order)
    _require_bias(bias, n)
    _require_k(k)


def check_dropout_seed(x: Tensor) -> None:
    pass


def check_fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> None:
    _require_dtype("x", x, *FLOATS, torch.float64)
    require(0.0 <= p <= 1.0, lambda: f"p must be in [0, 1], got {p}")
    require(activation in ACTIVATIONS, lambda: f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if bias is not None:
        _require_features(x)
        _require_bias(bias, x.shape[-1])
    if residual is not None:
        _require_dtype("residual", residual, x.dtype)
        _require_shape("residual", residual, *x.shape)
    if seed is None:
        require(p == 0.0, lambda: f"seed must be given when p > 0, got p={p}")
    else:
        _require_dtype("seed", seed, torch.int64)
        require(seed.dim() == 0, lambda: f"seed must be a 0-d tensor, got shape {list(seed.shape)}")


def check_fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> None:
    check_fused_dropout(x, bias, grad, seed, p, activation)


def check_fused_dropout_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    p: float,
    activation: str,
    norm: str,
    eps: float,
) -> None:
    check_fused_dropout(x, bias, residual, seed, p, activation)
    require(norm in NORMS, lambda: f"norm must be one of {NORMS}, got {norm!r}")
    require(x.dim() >= 1 and x.shape[-1] >= 1, lambda: f"x must have at least 1 feature, got shape {list(x.shape)}")
    require(eps >= 0.0, lambda: f"eps must not be negative, got {eps}")
    for name, t in (("weight", weight), ("norm_bias", norm_bias)):
        if t is not None:
            _require_dtype(name, t, *FLOATS, torch.float64)
            _require_shape(name, t, x.shape[-1])


def check_fused_dropout_norm_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    p: float,
    activation: str,
    norm: str,
) -> None:
    check_fused_dropout_norm(x, bias, grad_y, seed, weight, None, p, activation, norm, 0.0)
    for name, t in (("grad_h", grad_h), ("h", h)):
        if t is not None:
            _require_dtype(name, t, x.dtype)
            _require_shape(name, t, *x.shape)
    rows = math.prod(x.shape[:-1])
    _require_shape("mean", mean, rows if norm == "layer" else 0)
    _require_shape("rstd", rstd, rows)
