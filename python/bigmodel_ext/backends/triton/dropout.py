"""Dropout with its neighbours, and the norm behind it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONGEST_NORM = 8192  # features of a row that a block holds in registers, in the backward pass too


def _bias(x: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    return (bias if bias.dtype in (torch.float32, x.dtype) else bias.float()).contiguous()


def _run(
    x: Tensor, bias: Tensor | None, other: Tensor | None, seed: Tensor | None, p: float, activation: str, backward: bool
) -> Tensor:
    from bigmodel_ext.triton_kernels import fused_dropout as kernels

    other = None if other is None else other.contiguous()
    return kernels.run(x.contiguous(), _bias(x, bias), other, seed, p, activation, backward)


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    return _run(x, bias, residual, seed, p, activation, backward=False)


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    return _run(x, bias, grad, seed, p, activation, backward=True)


def fused_dropout_backward_bias(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    dx = fused_dropout_backward(grad, x, bias, seed, p, activation)
    return dx, dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1]).sum(0, dtype=torch.float32)


def _like(x: Tensor | None) -> Tensor | None:
    return None if x is None else (x.float() if x.dtype is torch.float64 else x).contiguous()


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
    from bigmodel_ext.triton_kernels import fused_dropout_norm as kernels

    floats = (_like(bias), _like(residual), seed, _like(weight), _like(norm_bias))
    return kernels.forward(x.contiguous(), *floats, p, activation, norm, eps)


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
    from bigmodel_ext.triton_kernels import fused_dropout_norm as kernels

    saved = (h.contiguous(), mean.contiguous(), rstd.contiguous(), x.contiguous(), _like(bias))
    return kernels.backward(grad_y.contiguous(), _like(grad_h), *saved, seed, _like(weight), p, activation, norm)
