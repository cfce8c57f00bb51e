"""Weights in panels of compressed sparse rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext._autograd._common import before, column_sums, register

_ops = torch.ops.bigmodel_ext


def _int8_sparse_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, crow, col, weight_scale, row_sum, bias, ctx.panel, order, ctx.activation = inputs
    ctx.save_for_backward(
        values, crow, col, weight_scale, bias, order, *((None, None) if ctx.activation == "none" else (x, row_sum))
    )
    ctx.in_features = x.shape[-1]


def _int8_sparse_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, crow, col, weight_scale, bias, order, x, row_sum = ctx.saved_tensors
    weights = (values, crow, col, weight_scale, row_sum, bias, ctx.panel, order)
    grad, dx = before(ctx.activation, grad, lambda: _ops.int8_sparse_linear(x, *weights)), None
    if ctx.needs_input_grad[0]:
        n, k = weight_scale.shape[0], ctx.in_features
        blocks = -(-k // 4)
        weight = _reference.sparse_to_dense(values, crow, col, n, blocks, ctx.panel, order).reshape(n, -1)[:, :k]
        dx = ((grad.float() * weight_scale) @ weight.float()).to(grad.dtype)
    dbias = column_sums(grad, bias) if ctx.needs_input_grad[6] else None
    return dx, None, None, None, None, None, dbias, None, None, None


def _pack_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, _, ctx.panel, ctx.sort = inputs
    ctx.size = weight.shape
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _pack_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    crow, col, order = ctx.saved_tensors
    (n, k), order = ctx.size, order if ctx.sort else None
    return _reference.sparse_to_dense(grad, crow, col, n, k, ctx.panel, order), None, None, None


def _sparse_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, crow, col, bias, _, ctx.panel, order, ctx.activation = inputs
    ctx.save_for_backward(x, values, crow, col, bias, order)


def _sparse_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, crow, col, bias, order = ctx.saved_tensors
    weights = (values, crow, col, bias, grad.shape[-1], ctx.panel, order)
    grad = before(ctx.activation, grad, lambda: _ops.sparse_linear(x, *weights))
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _ops.sparse_linear_grad_input(grad, values, crow, col, x.shape[-1], ctx.panel, order)
    if ctx.needs_input_grad[1]:
        dvalues = _ops.sparse_linear_grad_values(grad, x, crow, col, ctx.panel, order).to(values.dtype)
    if ctx.needs_input_grad[4]:
        dbias = column_sums(grad, bias)
    return dx, dvalues, None, None, dbias, None, None, None, None


def _grad_input_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, crow, col, _, ctx.panel, order = inputs
    ctx.save_for_backward(grad, values, crow, col, order)


def _grad_input_backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, crow, col, order = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = _ops.sparse_linear(out, values, crow, col, None, grad.shape[-1], ctx.panel, order)
    if ctx.needs_input_grad[1]:
        dvalues = _ops.sparse_linear_grad_values(grad, out, crow, col, ctx.panel, order).to(values.dtype)
    return dgrad, dvalues, None, None, None, None, None


def _grad_values_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, crow, col, ctx.panel, order = inputs
    ctx.save_for_backward(grad, x, crow, col, order)


def _grad_values_backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, crow, col, order = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = _ops.sparse_linear(x, out, crow, col, None, grad.shape[-1], ctx.panel, order)
    if ctx.needs_input_grad[1]:
        dx = _ops.sparse_linear_grad_input(grad, out, crow, col, x.shape[-1], ctx.panel, order)
    return dgrad, dx, None, None, None, None


register("int8_sparse_linear", _int8_sparse_linear_setup, _int8_sparse_linear_backward)
register("pack_panel_csr", _pack_setup, _pack_backward)
register("sparse_linear", _sparse_linear_setup, _sparse_linear_backward)
register("sparse_linear_grad_input", _grad_input_setup, _grad_input_backward)
register("sparse_linear_grad_values", _grad_values_setup, _grad_values_backward)
