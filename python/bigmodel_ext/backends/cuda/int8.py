"""Row quantization and int8 products."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _checks, _dispatch
from bigmodel_ext._reference import unpack_int8


@lru_cache
def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0):
        return None
    return "the kernels need compute capability 8.0 or later"


def refusal(x: Tensor) -> str | None:
    return _device_refusal(x.device)


@lru_cache(maxsize=4096)
def _plan(native: Any, m: int, n: int, k: int, floats: bool, device: int) -> tuple[int, int, int]:
    """Which kernel, into how many parts it divides K, and the bytes of workspace that this takes."""
    return native.int8_plan(m, n, k, floats, device)


def _workspace(native: Any, x: Tensor, m: int, n: int, k: int, floats: bool) -> tuple[tuple[int, int, int], Tensor]:
    plan = _plan(native, m, n, k, floats, x.device.index or 0)
    return plan, x.new_empty(plan[2], dtype=torch.uint8)


def quantize_rows(native: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if refusal(x):
        return _dispatch.fall_back("quantize_rows", x)
    _checks.check_quantize_rows(x)
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)
    native.quantize_rows(x.contiguous(), q, scale)
    return q, scale


def int8_mm(native: Any, a: Tensor, b: Tensor) -> Tensor:
    if refusal(a):
        return _dispatch.fall_back("int8_mm", a, b)
    _checks.check_int8_mm(a, b)
    (m, k), n = a.shape, b.shape[0]
    out = a.new_empty(m, n, dtype=torch.int32)
    native.int8_mm(a.contiguous(), b.contiguous(), out, *_workspace(native, a, m, n, k, False))
    return out


def int8_linear(
    native: Any,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    input_scale: Tensor | None = None,
) -> Tensor:
    if refusal(x):
        return _dispatch.fall_back("int8_linear", x, weight, weight_scale, bias, activation, input_scale)
    _checks.check_int8_linear(x, weight, weight_scale, bias, activation, input_scale)
    n, k = weight_scale.shape[0], x.shape[-1]
    if weight.dim() == 4:  # the CPU's order; layers hold [N,K] on this device
        weight = unpack_int8(weight, n, k)
    if bias is not None:
        bias = (bias.float() if bias.dtype is torch.float64 else bias).contiguous()
    out = x.new_empty((*x.shape[:-1], n))
    native.int8_linear(
        x.contiguous(),
        weight.contiguous(),
        weight_scale.contiguous(),
        bias,
        out,
        activation,
        input_scale,
        *_workspace(native, x, math.prod(x.shape[:-1]), n, k, True),
    )
    return out
