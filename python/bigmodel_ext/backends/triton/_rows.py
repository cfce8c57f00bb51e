"""What linear layers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rows_of(x: Tensor) -> Tensor:
    """[..., K] -> [M,K], contiguous."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()


def bias_of(bias: Tensor | None) -> Tensor | None:
    """As kernels take it: they read any float dtype but float64."""
    if bias is None:
        return None
    return (bias.float() if bias.dtype is torch.float64 else bias).contiguous()
