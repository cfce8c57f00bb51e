"""CPU kernels: allocate the output, call the compiled kernel. All checks are in C++, before memory is touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _dispatch, _native
from bigmodel_ext._dispatch import Candidate


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.contiguous()


def _optional_dense(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.is_contiguous() else x.contiguous()


def _rows(x: Tensor, n: int, n_name: str = "out_features") -> Tensor:
    if x.dim() == 0:
        raise ValueError("x must have at least 1 dimension, got a 0-d tensor")
    if n < 0:
        raise ValueError(f"{n_name} must not be negative, got {n}")
    return x.new_empty((*x.shape[:-1], n))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)
    _native.quantize_rows(x, q, scale)
    return q, scale


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[:1] + b.shape[:1], dtype=torch.int32)
    _native.int8_mm(a, b, out)
    return out


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    n = weight_scale.shape[0] if weight_scale.dim() else 0  # a 0-d scale is refused in C++
    out = x.new_empty(x.shape[0], n) if x.dim() == 2 else _rows(x, n)  # numbers cost half as much as a tuple
    _native.int8_linear(x, weight, weight_scale, bias, out)
    return out


def sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int, panel: int
) -> Tensor:
    if x.dtype is torch.float64:
        return NotImplemented
    two_d = x.dim() == 2 and out_features >= 0  # numbers cost half as much as a tuple
    out = x.new_empty(x.shape[0], out_features) if two_d else _rows(x, out_features)
    _native.sparse_linear(x, values, crow, col, bias, out, panel)
    return out


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int
) -> Tensor:
    if grad.dtype is torch.float64:
        return NotImplemented
    out = _rows(grad, in_features, "in_features")
    _native.sparse_linear_grad_input(grad, values, crow, col, out, panel)
    return out


def sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int) -> Tensor:
    if grad.dtype is torch.float64:
        return NotImplemented
    out = grad.new_empty(col.shape)
    _native.sparse_linear_grad_values(grad, x, crow, col, out, panel)
    return out


def int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None,
    panel: int,
) -> Tensor:
    n = weight_scale.shape[0] if weight_scale.dim() else 0  # a 0-d scale is refused in C++
    out = x.new_empty(x.shape[0], n) if x.dim() == 2 else _rows(x, n)
    _native.int8_sparse_linear(x, values, crow, col, weight_scale, row_sum, bias, out, panel)
    return out


def _dropout_bias(x: Tensor, bias: Tensor | None) -> Tensor | None:
    """Contiguous, and float32 if it is a float that the kernel does not read."""
    if bias is not None and bias.is_floating_point() and bias.dtype not in (torch.float32, x.dtype):
        bias = bias.float()
    return _optional_dense(bias)


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    out = torch.empty_like(x)
    if _native.fused_dropout(x, bias, residual, seed, out, p, activation):  # the kernel could take them as they are
        return out
    if x.dtype is torch.float64:
        return NotImplemented
    x = x.contiguous()
    out = torch.empty_like(x)
    _native.fused_dropout(x, _dropout_bias(x, bias), _optional_dense(residual), seed, out, p, activation)
    return out


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    out = torch.empty_like(x)
    if _native.fused_dropout_backward(grad, x, bias, seed, out, p, activation):
        return out
    if x.dtype is torch.float64:
        return NotImplemented
    x = x.contiguous()
    out = torch.empty_like(x)
    _native.fused_dropout_backward(grad.contiguous(), x, _dropout_bias(x, bias), seed, out, p, activation)
    return out


def _double(x: Tensor, *rest: Any) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


_dispatch.register(
    "cpu",
    {
        "quantize_rows": Candidate("cpu", quantize_rows),
        "int8_mm": Candidate("cpu", int8_mm),
        "int8_linear": Candidate("cpu", int8_linear),
        "int8_sparse_linear": Candidate("cpu", int8_sparse_linear),
        "sparse_linear": Candidate("cpu", sparse_linear, _double, late=True),
        "sparse_linear_grad_input": Candidate("cpu", sparse_linear_grad_input, _double, late=True),
        "sparse_linear_grad_values": Candidate("cpu", sparse_linear_grad_values, _double, late=True),
        "fused_dropout": Candidate("cpu", fused_dropout, _double, late=True),
        "fused_dropout_backward": Candidate("cpu", fused_dropout_backward, _double, late=True),
    },
)
