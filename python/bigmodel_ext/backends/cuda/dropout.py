"""Dropout with its neighbours."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch


def _parameter(x: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    if bias.is_floating_point() and bias.dtype not in (torch.float32, x.dtype):
        bias = bias.float()
    return bias.contiguous()


def fused_dropout(
    native: Any, x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout", x, bias, residual, seed, p, activation)
    x = x.contiguous()
    out = torch.empty_like(x)
    residual = None if residual is None else residual.contiguous()
    native.fused_dropout(x, _parameter(x, bias), residual, seed, out, p, activation)
    return out


def fused_dropout_backward(
    native: Any, grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout_backward", grad, x, bias, seed, p, activation)
    x = x.contiguous()
    out = torch.empty_like(x)
    native.fused_dropout_backward(grad.contiguous(), x, _parameter(x, bias), seed, out, p, activation)
    return out


def _slabs(native: Any, x: Tensor, vectors: int) -> tuple[Tensor, Tensor]:
    """Room for sums over rows: the kernel's partial ones, and the result."""
    features = x.shape[-1]
    count = native.norm_slabs(x.numel() // max(1, features), features, x.device.index or 0)
    return (
        x.new_empty((count, vectors, features), dtype=torch.float32),
        x.new_empty((vectors, features), dtype=torch.float32),
    )


def fused_dropout_backward_bias(
    native: Any, grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    if x.dim() and 1 <= x.shape[-1] <= native.NORM_BACKWARD_MOST_FEATURES and x.dtype is not torch.float64:
        x = x.contiguous()
        dx, (slabs, sums) = torch.empty_like(x), _slabs(native, x, 1)
        native.fused_dropout_backward_bias(
            grad.contiguous(), x, _parameter(x, bias), seed, dx, slabs, sums, p, activation
        )
        return dx, sums[0]
    dx = fused_dropout_backward(native, grad, x, bias, seed, p, activation)
    rows = dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1])
    return dx, rows.sum(0, dtype=torch.promote_types(dx.dtype, torch.float32))


def fused_dropout_norm(
    native: Any,
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
    if why_not_norm(native, x) is not None:
        out: tuple[Tensor, ...] = _dispatch.fall_back("fused_dropout_norm", x, *args)
        return out
    if x.dim() == 0 or x.shape[-1] == 0 or norm not in _checks.NORMS:
        _checks.check_fused_dropout_norm(x, *args)  # raises
    x = x.contiguous()
    rows = x.numel() // max(1, x.size(-1))
    y, h, rstd = torch.empty_like(x), torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    mean = x.new_empty(rows if norm == "layer" else 0, dtype=torch.float32)
    native.fused_dropout_norm(
        x, _parameter(x, bias), None if residual is None else residual.contiguous(), seed, _parameter(x, weight),
        _parameter(x, norm_bias), y, h, mean, rstd, p, activation, norm == "rms", eps,
    )  # fmt: skip
    return y, h, mean, rstd


def fused_dropout_norm_backward(
    native: Any,
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
    if why_not_norm_backward(native, grad_y) is not None:
        out: tuple[Tensor, ...] = _dispatch.fall_back("fused_dropout_norm_backward", grad_y, *args)
        return out
    if x.dim() == 0 or x.shape[-1] == 0 or norm not in _checks.NORMS:
        _checks.check_fused_dropout_norm_backward(grad_y, *args)  # raises
    x = x.contiguous()
    dx, dh, (slabs, sums) = torch.empty_like(x), torch.empty_like(x), _slabs(native, x, 2 if bias is None else 3)
    native.fused_dropout_norm_backward(
        grad_y.contiguous(), None if grad_h is None else grad_h.contiguous(), h.contiguous(), mean.contiguous(),
        rstd.contiguous(), x, _parameter(x, bias), seed, _parameter(x, weight), dx, dh, slabs, sums, p, activation,
        norm == "rms",
    )  # fmt: skip
    return dx, dh, sums


def why_not_norm(native: Any, x: Tensor) -> str | None:
    return _too_long(x, native.NORM_MOST_FEATURES)


def why_not_norm_backward(native: Any, x: Tensor) -> str | None:
    return _too_long(x, native.NORM_BACKWARD_MOST_FEATURES)


def _too_long(x: Tensor, most: int) -> str | None:
    if x.dtype is torch.float64:
        return "float64 is computed by the reference"
    return (
        f"rows of more than {most} features are computed by the reference" if x.dim() and x.shape[-1] > most else None
    )
