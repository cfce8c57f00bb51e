"""Dropout with its neighbours, and the norm behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext._autograd._common import register

_ops = torch.ops.bigmodel_ext


def _fused_dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, _, seed, ctx.p, ctx.activation = inputs
    ctx.save_for_backward(x, bias, seed)


def _fused_dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, seed = ctx.saved_tensors
    dx = dbias = None
    if ctx.needs_input_grad[1]:
        dx, dbias = _ops.fused_dropout_backward_bias(grad, x, bias, seed, ctx.p, ctx.activation)
        dbias = dbias.to(bias.dtype)
    elif ctx.needs_input_grad[0]:
        dx = _ops.fused_dropout_backward(grad, x, bias, seed, ctx.p, ctx.activation)
    return dx, dbias, grad if ctx.needs_input_grad[2] else None, None, None, None


def _fused_dropout_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, _, seed, weight, norm_bias, ctx.p, ctx.activation, ctx.norm, _ = inputs
    ctx.norm_bias_dtype = None if norm_bias is None else norm_bias.dtype
    ctx.save_for_backward(x, bias, seed, weight, *output[1:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _fused_dropout_norm_backward(
    ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    x, bias, seed, weight, h, mean, rstd = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(h)
    dx, dh, sums = _ops.fused_dropout_norm_backward(
        grad_y, grad_h, h, mean, rstd, x, bias, seed, weight, ctx.p, ctx.activation, ctx.norm
    )
    return (
        dx,
        None if bias is None else sums[2].to(bias.dtype),
        dh if ctx.needs_input_grad[2] else None,
        None,
        None if weight is None else sums[0].to(weight.dtype),
        None if ctx.norm_bias_dtype is None else sums[1].to(ctx.norm_bias_dtype),
        *(None,) * 4,
    )


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _no_second_derivative(ctx: Any, *out: Tensor) -> None:
    raise RuntimeError("fused_dropout can't be differentiated twice")


register("fused_dropout", _fused_dropout_setup, _fused_dropout_backward)
register("fused_dropout_norm", _fused_dropout_norm_setup, _fused_dropout_norm_backward)
for _name in ("fused_dropout_backward", "fused_dropout_backward_bias", "fused_dropout_norm_backward"):
    register(_name, _no_setup, _no_second_derivative)
