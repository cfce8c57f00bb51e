"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from bigmodel_ext import _reference
from bigmodel_ext._autograd._common import register


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


register("int8_conv2d", _int8_conv2d_setup, _int8_conv2d_backward)
register("sparse_conv2d", _sparse_conv2d_setup, _sparse_conv2d_backward)
