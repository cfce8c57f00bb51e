"""Dropout with its neighbours, and the norm behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _native


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
