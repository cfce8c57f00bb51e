"""Square blocks of weights, and 2:4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext._autograd._common import before, column_sums, register

_ops = torch.ops.bigmodel_ext


def _patterned(name: str, indices: int) -> None:
    """The formulas of a linear op (x, values, *pattern, bias, out_features) and its two gradients, whose pattern is so
    many tensors. A product with the stored values, one with them transposed, and one of two activations where values
    are stored: each one's gradients are the other two."""
    forward, grad_input, grad_values = (getattr(_ops, f"{name}{part}") for part in ("", "_grad_input", "_grad_values"))
    none = (None,) * (indices + 1)  # the pattern's gradients, and the last argument's

    def size_of(values: Tensor) -> tuple[int, ...]:
        return (values.shape[-1],) if name == "block_sparse_linear" else ()

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:-1])  # activations, values, pattern, and the forward's bias

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, *pattern, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx = grad_input(grad, values, *pattern, x.shape[-1]) if needs[0] else None
        dvalues = grad_values(grad, x, *pattern, *size_of(values)).to(values.dtype) if needs[1] else None
        dbias = column_sums(grad, bias) if needs[2 + indices] else None
        return dx, dvalues, *none[1:], dbias, None

    def input_backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
        grad, values, *pattern = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dgrad = forward(out, values, *pattern, None, grad.shape[-1]) if needs[0] else None
        dvalues = grad_values(grad, out, *pattern, *size_of(values)).to(values.dtype) if needs[1] else None
        return dgrad, dvalues, *none

    def values_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: 2 + indices])

    def values_backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, *pattern = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dgrad = forward(x, out, *pattern, None, grad.shape[-1]) if needs[0] else None
        dx = grad_input(grad, out, *pattern, x.shape[-1]) if needs[1] else None
        return dgrad, dx, *none[: indices + len(size_of(out))]

    register(name, setup, backward)
    register(f"{name}_grad_input", setup, input_backward)
    register(f"{name}_grad_values", values_setup, values_backward)


_patterned("block_sparse_linear", 2)
_patterned("semi_sparse_linear", 1)


def _int8_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, weight_scale, bias, ctx.activation = inputs
    ctx.save_for_backward(values, index, weight_scale, bias, None if ctx.activation == "none" else x)
    ctx.in_features = x.shape[-1]


def _int8_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, index, weight_scale, bias, x = ctx.saved_tensors
    weights = (values, index, weight_scale, bias)
    grad, dx = before(ctx.activation, grad, lambda: _ops.int8_semi_sparse_linear(x, *weights)), None
    if ctx.needs_input_grad[0]:
        weight = _reference.int8_semi_to_dense(values, index, weight_scale.shape[0], ctx.in_features)
        dx = ((grad.float() * weight_scale) @ weight.float()).to(grad.dtype)
    dbias = column_sums(grad, bias) if ctx.needs_input_grad[4] else None
    return dx, None, None, None, dbias, None


register("int8_semi_sparse_linear", _int8_setup, _int8_backward)
