"""Weights in square blocks, and with two of every four.

float32 values beside 16-bit activations are rounded to their dtype first, as autocast rounds a dense weight: tensor
cores take both operands in one dtype."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_ext import _checks, _dispatch

_CHUNK = 16  # bytes that one asynchronous copy moves


def _aligned(t: Tensor) -> Tensor:
    t = t.contiguous()
    return t if t.data_ptr() % _CHUNK == 0 else t.clone()


def _rows(x: Tensor) -> Tensor:
    """[M, K or a little more]: whole chunks to a row, with zeros behind what there is."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    padding = -rows.shape[1] % (_CHUNK // rows.element_size())
    return F.pad(rows, (0, padding)) if padding else _aligned(rows)


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def semi_sparse_linear(
    native: Any, x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    if x.dtype is torch.float64:
        return _dispatch.fall_back("semi_sparse_linear", x, values, index, bias, out_features)
    _checks.check_semi_sparse_linear(x, values, index, bias, out_features)
    out = x.new_empty((*x.shape[:-1], out_features))
    rows = _rows(x)
    native.semi_sparse_linear(
        rows, _aligned(values.to(x.dtype)), _aligned(index), _wide(bias), out.view(rows.shape[0], out_features)
    )
    return out
