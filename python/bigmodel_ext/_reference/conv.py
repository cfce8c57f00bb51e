"""Convolutions with int8 or sparse weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_ext._reference.int8 import quantize_rows, unpack_int8
from bigmodel_ext._reference.sparse import sparse_to_dense


def channels_last(x: Tensor) -> bool:
    """Whether x [B,C,H,W] lies in memory as [B,H,W,C] and not (also) as it is written."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def in_order_of(x: Tensor, y: Tensor) -> Tensor:
    """y in the dtype and memory format that a convolution of x gives."""
    order = torch.channels_last if channels_last(x) else torch.contiguous_format
    return torch.empty(y.shape, dtype=x.dtype, device=x.device, memory_format=order).copy_(y)  # rounds to x's dtype


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """F.conv2d with padding (top, bottom, left, right)."""
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, tuple(stride), (top, left), tuple(dilation), groups)


def conv_rows(weight: Tensor) -> Tensor:
    """[N,Cg,kh,kw] -> [N,K], channels fastest: the order in which an image with its channels last is read."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def unpack_int8_conv(weight: Tensor, n: int, kernel_size: Sequence[int], group_channels: int) -> Tensor:
    """Either layout of formats.int8_conv -> int8 [N,Cg,kh,kw]."""
    kh, kw = kernel_size
    k = kh * kw * group_channels
    if weight.dim() == 5:
        weight = torch.cat([unpack_int8(group, n // weight.shape[0], k) for group in weight.unbind()])
    return weight.reshape(n, kh, kw, group_channels).permute(0, 3, 1, 2)


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    weight = unpack_int8_conv(weight, weight_scale.shape[0], kernel_size, x.shape[1] // groups)
    q, x_scale = quantize_rows(x.flatten(1))
    # Every partial sum is below 2^53: exact.
    acc = conv2d(q.view(x.shape).double(), weight.double(), None, stride, padding, dilation, groups)
    y = acc.float() * x_scale.view(-1, 1, 1, 1) * weight_scale.view(-1, 1, 1)
    if bias is not None:
        y = y + bias.float().view(-1, 1, 1)
    return in_order_of(x, y)


def sparse_conv_weight(
    values: Tensor, crow: Tensor, col: Tensor, n: int, kernel_size: Sequence[int], group_channels: int, panel: int
) -> Tensor:
    """Dense [N,Cg,kh,kw]: the matrix's columns are channels, window lines and window columns, the last fastest."""
    kh, kw = kernel_size
    return sparse_to_dense(values, crow, col, n, group_channels * kh * kw, panel).view(n, group_channels, kh, kw)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_channels: int,
    panel: int,
) -> Tensor:
    weight = sparse_conv_weight(values, crow, col, out_channels, kernel_size, x.shape[1] // groups, panel)
    b = None if bias is None else bias.to(weight.dtype)
    return in_order_of(x, conv2d(x.to(weight.dtype), weight, b, stride, padding, dilation, groups))
