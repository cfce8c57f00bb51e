"""CPU kernels: allocate the output, call the compiled kernel. Checks are in C++, before memory is touched, and so
are copies of strided inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _native
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext.backends import transposed


def _rows(x: Tensor, n: int, n_name: str = "out_features") -> Tensor:
    if n < 0:
        raise ValueError(f"{n_name} must not be negative, got {n}")
    if x.dim() == 0:
        raise ValueError("x must have at least 1 dimension, got a 0-d tensor")
    return x.new_empty((*x.shape[:-1], n))


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


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    n = weight_scale.numel()
    out = x.new_empty(x.size(0), n) if x.dim() == 2 else _rows(x, n)  # numbers cost half as much as a tuple
    _native.int8_linear(x, weight, weight_scale, bias, out)
    return out


def _conv_images(x: Tensor, n: int, window: tuple[Any, ...]) -> tuple[Tensor, Tensor, tuple[int, ...], bool]:
    """x as the kernels take it, the output, and the window as 11 numbers."""
    shape = _checks.conv2d_shape(x, n, *window)
    if x.is_contiguous():
        last = False
    elif x.is_contiguous(memory_format=torch.channels_last):
        last = True
    else:
        x, last = x.contiguous(), False
    order = torch.channels_last if last else torch.contiguous_format
    kernel_size, stride, padding, dilation, groups = window
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    return x, out, (*kernel_size, *stride, *padding, *dilation, groups), last


def int8_conv2d(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    x, out, numbers, last = _conv_images(x, weight_scale.numel(), window)
    _native.int8_conv2d(x, weight, weight_scale, bias, out, numbers, last)
    return out


def sparse_conv2d(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, *window_n_panel: Any
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("sparse_conv2d", x, values, crow, col, bias, *window_n_panel)
    *window, n, panel = window_n_panel
    x, out, numbers, last = _conv_images(x, n, tuple(window))
    _native.sparse_conv2d(x, values, crow, col, bias, out, numbers, panel, last)
    return out


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
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear", x, values, crow, col, bias, out_features, panel, order)
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else _rows(x, out_features)
    _native.sparse_linear(x, values, crow, col, order, bias, out, panel)
    return out


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_input", grad, values, crow, col, in_features, panel, order)
    out = _rows(grad, in_features, "in_features")
    n = grad.size(-1)
    if grad.numel() < transposed.FEW_ROWS * max(n, 1) or values.shape != col.shape:
        _native.sparse_linear_grad_input(grad, values, crow, col, order, out, panel)
        return out
    found = transposed.of(crow, col, order, n, in_features, panel)
    if found is None:
        _native.sparse_linear_grad_input(grad, values, crow, col, order, out, panel)
        return out
    permuted = values.new_empty(values.size(0))
    _native.permute_values(values, found.source, permuted)
    _native.sparse_linear(grad, permuted, found.crow, found.col, found.order, None, out, found.panel)
    return out


def sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("sparse_linear_grad_values", grad, x, crow, col, panel, order)
    out = grad.new_empty(col.shape)
    _native.sparse_linear_grad_values(grad, x, crow, col, order, out, panel)
    return out


def block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear", x, values, crow, col, bias, out_features)
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else _rows(x, out_features)
    _native.block_sparse_linear(x, values, crow, col, bias, out)
    return out


def block_sparse_linear_grad_input(grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("block_sparse_linear_grad_input", grad, values, crow, col, in_features)
    out = _rows(grad, in_features, "in_features")
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
    out = x.new_empty(x.size(0), out_features) if x.dim() == 2 and out_features >= 0 else _rows(x, out_features)
    _native.semi_sparse_linear(x, values, index, bias, out)
    return out


def semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear_grad_input", grad, values, index, in_features)
    out = _rows(grad, in_features, "in_features")
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
) -> Tensor:
    n = weight_scale.numel()
    out = x.new_empty(x.size(0), n) if x.dim() == 2 else _rows(x, n)
    _native.int8_sparse_linear(x, values, crow, col, order, weight_scale, row_sum, bias, out, panel)
    return out


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout", x, bias, residual, seed, p, activation)
    out = torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)
    _native.fused_dropout(x, bias, residual, seed, out, p, activation)
    return out


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout_backward", grad, x, bias, seed, p, activation)
    out = x.new_empty(x.shape)
    _native.fused_dropout_backward(grad, x, bias, seed, out, p, activation)
    return out


def fused_dropout_backward_bias(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    if grad.dtype is torch.float64:
        out: tuple[Tensor, Tensor] = _dispatch.fall_back(
            "fused_dropout_backward_bias", grad, x, bias, seed, p, activation
        )
        return out
    dx, dbias = x.new_empty(x.shape), x.new_empty(x.shape[-1] if x.dim() else 1, dtype=torch.float32)
    _native.fused_dropout_backward_bias(grad, x, bias, seed, dx, dbias, p, activation)
    return dx, dbias


def fused_dropout_norm(
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
) -> tuple[Tensor, ...]:
    args = (bias, residual, seed, weight, norm_bias, p, activation, norm, eps)
    if x.dtype is torch.float64:
        out: tuple[Tensor, ...] = _dispatch.fall_back("fused_dropout_norm", x, *args)
        return out
    if x.dim() == 0 or norm not in _checks.NORMS:
        _checks.check_fused_dropout_norm(x, *args)  # raises
    rows = x.numel() // max(1, x.size(-1))
    y, h, rstd = x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(rows, dtype=torch.float32)
    mean = x.new_empty(rows if norm == "layer" else 0, dtype=torch.float32)
    _native.fused_dropout_norm(
        x, bias, residual, seed, weight, norm_bias, y, h, mean, rstd, p, activation, norm == "rms", eps
    )
    return y, h, mean, rstd


def fused_dropout_norm_backward(
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
) -> tuple[Tensor, ...]:
    args = (grad_h, h, mean, rstd, x, bias, seed, weight, p, activation, norm)
    if grad_y.dtype is torch.float64:
        out: tuple[Tensor, ...] = _dispatch.fall_back("fused_dropout_norm_backward", grad_y, *args)
        return out
    if x.dim() == 0 or norm not in _checks.NORMS:
        _checks.check_fused_dropout_norm_backward(grad_y, *args)  # raises
    dx, dh = x.new_empty(x.shape), x.new_empty(x.shape)
    sums = x.new_empty(2 if bias is None else 3, x.size(-1), dtype=torch.float32)
    _native.fused_dropout_norm_backward(
        grad_y, grad_h, h, mean, rstd, x, bias, seed, weight, dx, dh, sums, p, activation, norm == "rms"
    )
    return dx, dh, sums


def _double(x: Tensor) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


_dispatch.register(
    "cpu",
    {
        "quantize_rows": Candidate("cpu", quantize_rows),
        "int8_mm": Candidate("cpu", int8_mm),
        "int8_linear": Candidate("cpu", int8_linear),
        "int8_conv2d": Candidate("cpu", int8_conv2d),
        "int8_sparse_linear": Candidate("cpu", int8_sparse_linear),
        "sparse_conv2d": Candidate("cpu", sparse_conv2d, _double),
        "pack_panel_csr": Candidate("cpu", pack_panel_csr),
        "sparse_linear": Candidate("cpu", sparse_linear, _double),
        "sparse_linear_grad_input": Candidate("cpu", sparse_linear_grad_input, _double),
        "sparse_linear_grad_values": Candidate("cpu", sparse_linear_grad_values, _double),
        "block_sparse_linear": Candidate("cpu", block_sparse_linear, _double),
        "block_sparse_linear_grad_input": Candidate("cpu", block_sparse_linear_grad_input, _double),
        "block_sparse_linear_grad_values": Candidate("cpu", block_sparse_linear_grad_values, _double),
        "semi_sparse_linear": Candidate("cpu", semi_sparse_linear, _double),
        "semi_sparse_linear_grad_input": Candidate("cpu", semi_sparse_linear_grad_input, _double),
        "semi_sparse_linear_grad_values": Candidate("cpu", semi_sparse_linear_grad_values, _double),
        "fused_dropout": Candidate("cpu", fused_dropout, _double),
        "fused_dropout_backward": Candidate("cpu", fused_dropout_backward, _double),
        "fused_dropout_backward_bias": Candidate("cpu", fused_dropout_backward_bias, _double),
        "fused_dropout_norm": Candidate("cpu", fused_dropout_norm, _double),
        "fused_dropout_norm_backward": Candidate("cpu", fused_dropout_norm_backward, _double),
    },
)
