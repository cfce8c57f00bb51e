"""Dropout with its neighbours."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _dispatch


def _bias(x: Tensor, bias: Tensor | None) -> Tensor | None:
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
    native.fused_dropout(x, _bias(x, bias), residual, seed, out, p, activation)
    return out


def fused_dropout_backward(
    native: Any, grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout_backward", grad, x, bias, seed, p, activation)
    x = x.contiguous()
    out = torch.empty_like(x)
    native.fused_dropout_backward(grad.contiguous(), x, _bias(x, bias), seed, out, p, activation)
    return out


def fused_dropout_backward_bias(
    native: Any, grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    dx = fused_dropout_backward(native, grad, x, bias, seed, p, activation)
    rows = dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1])
    return dx, rows.sum(0, dtype=torch.promote_types(dx.dtype, torch.float32))
