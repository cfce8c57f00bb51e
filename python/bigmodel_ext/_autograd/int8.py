"""int8_linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext._autograd._common import before, column_sums, register

_ops = torch.ops.bigmodel_ext


def _int8_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, weight_scale, bias, ctx.activation, input_scale = inputs
    needs_x = ctx.activation != "none" or input_scale is not None
    ctx.save_for_backward(weight, weight_scale, bias, input_scale, x if needs_x else None)
    ctx.in_features = x.shape[-1]


def _int8_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, weight_scale, bias, input_scale, x = ctx.saved_tensors
    linear = (weight, weight_scale, bias, "none", input_scale)
    grad = before(ctx.activation, grad, lambda: _ops.int8_linear(x, *linear))
    if weight.dim() == 4:
        weight = _reference.unpack_int8(weight, weight_scale.shape[0], ctx.in_features)
    dx = (grad.float() * weight_scale) @ weight.float() if ctx.needs_input_grad[0] else None
    if dx is not None and input_scale is not None:  # what saturates does not depend on x
        dx = torch.where(x.float().abs() <= 127 * input_scale, dx, 0.0)
    dbias = column_sums(grad, bias) if ctx.needs_input_grad[3] else None
    return None if dx is None else dx.to(grad.dtype), None, None, dbias, None, None


register("int8_linear", _int8_linear_setup, _int8_linear_backward)


def _weight_only_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, weight_scale, bias, ctx.activation = inputs
    ctx.save_for_backward(weight, weight_scale, bias, None if ctx.activation == "none" else x)
    ctx.in_features = x.shape[-1]


def _weight_only_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, weight_scale, bias, x = ctx.saved_tensors
    grad = before(ctx.activation, grad, lambda: _ops.int8_weight_only_linear(x, packed, weight_scale, bias))
    weight = _reference.unpack_int8(packed, weight_scale.shape[0], ctx.in_features)
    dx = (grad.float() * weight_scale) @ weight.float() if ctx.needs_input_grad[0] else None
    dbias = column_sums(grad, bias) if ctx.needs_input_grad[3] else None
    return None if dx is None else dx.to(grad.dtype), None, None, dbias, None


register("int8_weight_only_linear", _weight_only_setup, _weight_only_backward)
