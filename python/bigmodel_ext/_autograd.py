"""Backward formulas, and nothing else. With W the (de-quantized) weight and g the gradient of the output:

int8_conv2d:                      dx = the transposed convolution of g with W         (rounding as below)
sparse_conv2d:                    the same, dvalues = (dense dW) at the stored positions: a dense backward pass
int8_linear, int8_sparse_linear:  dx = g W           (rounding counts as the identity: straight-through)
pack_panel_csr:                   dweight = dvalues at the stored positions
sparse_linear, block_sparse_linear, semi_sparse_linear:
                                  dx = g W,  dvalues = (g^T x) at the stored positions,  dbias = sum g
                                  (products of the same kind: they have gradients in turn)
With an activation, y = act(z):   g is first multiplied by act'(z), z computed once more from x  (once only)
fused_dropout:                    dx = keep * scale * act'(x + bias) * g,  dbias = sum dx,  dresidual = g  (once only)
fused_dropout_norm:               the same with g = dh, the gradient that reaches h = residual + dropout(act(x + bias))
                                  directly and through its normalisation  (once only)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from bigmodel_ext import _reference
from bigmodel_ext._ops import NAMESPACE, library

_ops = torch.ops.bigmodel_ext


def _column_sums(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias that was added to every row."""
    if bias is None:
        return None
    rows = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
    return rows.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias.dtype)


def _register(name: str, setup: Any, backward: Any) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=library)


def _before(activation: str, grad: Tensor, linear: Callable[[], Tensor]) -> Tensor:
    """The gradient of z, which `linear` computes, from that of y = act(z)."""
    return grad if activation == "none" else _ops.fused_dropout_backward(grad, linear(), None, None, 0.0, activation)


def _int8_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, weight_scale, bias, ctx.activation = inputs
    ctx.save_for_backward(weight, weight_scale, bias, None if ctx.activation == "none" else x)
    ctx.in_features = x.shape[-1]


def _int8_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, weight_scale, bias, x = ctx.saved_tensors
    grad = _before(ctx.activation, grad, lambda: _ops.int8_linear(x, weight, weight_scale, bias))
    if weight.dim() == 4:
        weight = _reference.unpack_int8(weight, weight_scale.shape[0], ctx.in_features)
    dx = (grad.float() * weight_scale) @ weight.float() if ctx.needs_input_grad[0] else None
    dbias = _column_sums(grad, bias) if ctx.needs_input_grad[3] else None
    return None if dx is None else dx.to(grad.dtype), None, None, dbias, None


def _channel_sums(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias that was added to every pixel."""
    if bias is None:
        return None
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias.dtype)


def _conv_input_grad(grad: Tensor, weight: Tensor, size: Any, window: tuple[Any, ...]) -> Tensor:
    """The gradient of a convolution's input, of `size` (height, width): that of the padded input, without its edge."""
    _, stride, (top, bottom, left, right), dilation, groups = window
    padded = (grad.shape[0], weight.shape[1] * groups, size[0] + top + bottom, size[1] + left + right)
    dx = conv2d_input(padded, weight, grad.to(weight.dtype), stride, 0, dilation, groups)
    return dx[:, :, top : top + size[0], left : left + size[1]].to(grad.dtype)


def _int8_conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, weight_scale, bias, *window = inputs
    ctx.save_for_backward(weight, weight_scale, bias)
    ctx.window, ctx.channels, ctx.size = tuple(window), x.shape[1], x.shape[2:]


def _int8_conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, weight_scale, bias = ctx.saved_tensors
    kernel_size, groups, dx = ctx.window[0], ctx.window[-1], None
    if ctx.needs_input_grad[0]:
        weight = _reference.unpack_int8_conv(weight, weight_scale.shape[0], kernel_size, ctx.channels // groups)
        dx = _conv_input_grad(grad, weight.float() * weight_scale.view(-1, 1, 1, 1), ctx.size, ctx.window)
    dbias = _channel_sums(grad, bias) if ctx.needs_input_grad[3] else None
    return dx, None, None, dbias, None, None, None, None, None


def _sparse_conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, crow, col, bias, *window, ctx.outputs, ctx.panel = inputs
    ctx.save_for_backward(x, values, crow, col, bias)
    ctx.window = tuple(window)


def _sparse_conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, crow, col, bias = ctx.saved_tensors
    kernel_size, stride, (top, bottom, left, right), dilation, groups = ctx.window
    dx = dvalues = None
    group_channels = x.shape[1] // groups
    if ctx.needs_input_grad[0]:
        weight = _reference.sparse_conv_weight(values, crow, col, ctx.outputs, kernel_size, group_channels, ctx.panel)
        dx = _conv_input_grad(grad, weight, x.shape[2:], ctx.window)
    if ctx.needs_input_grad[1]:
        shape = (ctx.outputs, group_channels, *kernel_size)
        padded = torch.nn.functional.pad(x, (left, right, top, bottom)).to(values.dtype)
        dense = conv2d_weight(padded, shape, grad.to(values.dtype), stride, 0, dilation, groups).flatten(1)
        rows, columns = _reference.panel_rows_columns(crow, col, ctx.outputs, ctx.panel)
        dvalues = dense[rows, columns]
    dbias = _channel_sums(grad, bias) if ctx.needs_input_grad[4] else None
    return dx, dvalues, None, None, dbias, None, None, None, None, None, None, None


def _int8_sparse_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, crow, col, weight_scale, row_sum, bias, ctx.panel, order, ctx.activation = inputs
    ctx.save_for_backward(
        values, crow, col, weight_scale, bias, order, *((None, None) if ctx.activation == "none" else (x, row_sum))
    )
    ctx.in_features = x.shape[-1]


def _int8_sparse_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, crow, col, weight_scale, bias, order, x, row_sum = ctx.saved_tensors
    weights = (values, crow, col, weight_scale, row_sum, bias, ctx.panel, order)
    grad, dx = _before(ctx.activation, grad, lambda: _ops.int8_sparse_linear(x, *weights)), None
    if ctx.needs_input_grad[0]:
        n, k = weight_scale.shape[0], ctx.in_features
        blocks = -(-k // 4)
        weight = _reference.sparse_to_dense(values, crow, col, n, blocks, ctx.panel, order).reshape(n, -1)[:, :k]
        dx = ((grad.float() * weight_scale) @ weight.float()).to(grad.dtype)
    dbias = _column_sums(grad, bias) if ctx.needs_input_grad[6] else None
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
    grad = _before(ctx.activation, grad, lambda: _ops.sparse_linear(x, *weights))
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _ops.sparse_linear_grad_input(grad, values, crow, col, x.shape[-1], ctx.panel, order)
    if ctx.needs_input_grad[1]:
        dvalues = _ops.sparse_linear_grad_values(grad, x, crow, col, ctx.panel, order).to(values.dtype)
    if ctx.needs_input_grad[4]:
        dbias = _column_sums(grad, bias)
    return dx, dvalues, None, None, dbias, None, None, None, None


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
        dbias = _column_sums(grad, bias) if needs[2 + indices] else None
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

    _register(name, setup, backward)
    _register(f"{name}_grad_input", setup, input_backward)
    _register(f"{name}_grad_values", values_setup, values_backward)


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _no_second_derivative(ctx: Any, *out: Tensor) -> None:
    raise RuntimeError("fused_dropout can't be differentiated twice")


_register("int8_linear", _int8_linear_setup, _int8_linear_backward)
_register("int8_conv2d", _int8_conv2d_setup, _int8_conv2d_backward)
_register("sparse_conv2d", _sparse_conv2d_setup, _sparse_conv2d_backward)
_register("int8_sparse_linear", _int8_sparse_linear_setup, _int8_sparse_linear_backward)
_register("pack_panel_csr", _pack_setup, _pack_backward)
_register("sparse_linear", _sparse_linear_setup, _sparse_linear_backward)
_register("sparse_linear_grad_input", _grad_input_setup, _grad_input_backward)
_register("sparse_linear_grad_values", _grad_values_setup, _grad_values_backward)
_patterned("block_sparse_linear", 2)
_patterned("semi_sparse_linear", 1)
_register("fused_dropout", _fused_dropout_setup, _fused_dropout_backward)
_register("fused_dropout_norm", _fused_dropout_norm_setup, _fused_dropout_norm_backward)
for _name in ("fused_dropout_backward", "fused_dropout_backward_bias", "fused_dropout_norm_backward"):
    _register(_name, _no_setup, _no_second_derivative)
