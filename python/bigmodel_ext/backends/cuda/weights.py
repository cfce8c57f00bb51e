"""Linear layers of few bytes a weight: int8 weights under float activations, and binary codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, its first byte at a multiple of 16: what kernels load in vectors."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _bias(x: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    return (bias if bias.dtype in (torch.float32, x.dtype) else bias.float()).contiguous()


def int8_weight_only_linear(
    native: Any, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    _checks.check_int8_weight_only_linear(x, weight, weight_scale, bias, activation)
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], weight_scale.shape[0]))
    native.int8_weight_only_linear(x, _aligned(weight), weight_scale.contiguous(), _bias(x, bias), out, activation)
    return out


def binary_coded_linear(
    native: Any,
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    _checks.check_binary_coded_linear(x, packed, scales, bias, out_features, group_size, activation)
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], out_features))
    room = native.binary_coded_workspace(math.prod(x.shape[:-1]), x.shape[-1], group_size)
    workspace = x.new_empty(room, dtype=torch.uint8)
    native.binary_coded_linear(
        x, _aligned(packed), _aligned(scales), _bias(x, bias), workspace, out, group_size, activation
    )
    return out
