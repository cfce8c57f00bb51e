"""CUDA kernels: allocate the output, enqueue the kernel on torch's current stream. Registered only where torch has a
device and the library was built with nvcc; elsewhere CUDA tensors run on the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_ext import _dispatch, _native
from bigmodel_ext._dispatch import Candidate

_C = _native.load_cuda()


def _bias(x: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    if bias.is_floating_point() and bias.dtype not in (torch.float32, x.dtype):
        bias = bias.float()
    return bias.contiguous()


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    assert _C is not None
    if x.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout", x, bias, residual, seed, p, activation)
    x = x.contiguous()
    out = torch.empty_like(x)
    residual = None if residual is None else residual.contiguous()
    _C.fused_dropout(x, _bias(x, bias), residual, seed, out, p, activation)
    return out


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    assert _C is not None
    if grad.dtype is torch.float64:
        return _dispatch.fall_back("fused_dropout_backward", grad, x, bias, seed, p, activation)
    x = x.contiguous()
    out = torch.empty_like(x)
    _C.fused_dropout_backward(grad.contiguous(), x, _bias(x, bias), seed, out, p, activation)
    return out


def fused_dropout_backward_bias(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    dx = fused_dropout_backward(grad, x, bias, seed, p, activation)
    rows = dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1])
    return dx, rows.sum(0, dtype=torch.promote_types(dx.dtype, torch.float32))


def _double(x: Tensor) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


if _C is not None:
    _dispatch.register(
        "cuda",
        {
            "fused_dropout": Candidate("cuda", fused_dropout, _double),
            "fused_dropout_backward": Candidate("cuda", fused_dropout_backward, _double),
            "fused_dropout_backward_bias": Candidate("cuda", fused_dropout_backward_bias, _double),
        },
    )
