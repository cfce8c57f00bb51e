"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch, _native


def _conv_images(x: Tensor, n: int, window: tuple[Any, ...]) -> tuple[Tensor, Tensor, tuple[int, ...], bool]:
    """x as the kernels take it, the output, and the window as 11 numbers."""
    shape = _checks.conv2d_shape(x, n, *window)
    if x.is_contiguous():
        last = False
    elif x.is_contiguous(memory_format=torch.channels_last):
        last = True
    else:
        x, last = x.contiguous(), False
    order = torch.channels_last if last else torch.contiguous_format
    kernel_size, stride, padding, dilation, groups = window
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    return x, out, (*kernel_size, *stride, *padding, *dilation, groups), last


def int8_conv2d(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    x, out, numbers, last = _conv_images(x, weight_scale.numel(), window)
    _native.int8_conv2d(x, weight, weight_scale, bias, out, numbers, last)
    return out


def sparse_conv2d(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, *window_n_panel: Any
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("sparse_conv2d", x, values, crow, col, bias, *window_n_panel)
    *window, n, panel = window_n_panel
    x, out, numbers, last = _conv_images(x, n, tuple(window))
    _native.sparse_conv2d(x, values, crow, col, bias, out, numbers, panel, last)
    return out
