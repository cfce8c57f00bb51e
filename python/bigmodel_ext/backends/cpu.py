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
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)
    _native.int8_mm(_dense(a), _dense(b), out)
    return out


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    out = _rows(x, weight_scale.shape[0])
    _native.int8_linear(_dense(x), _dense(weight), _dense(weight_scale), _optional_dense(bias), out)
    return out


def sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int, panel: int
) -> Tensor:
    out = _rows(x, out_features)
    _native.sparse_linear(_dense(x), _dense(values), _dense(crow), _dense(col), _optional_dense(bias), out, panel)
    return out


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int
) -> Tensor:
    out = _rows(grad, in_features, "in_features")
    _native.sparse_linear_grad_input(_dense(grad), _dense(values), _dense(crow), _dense(col), out, panel)
    return out


def sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int) -> Tensor:
    out = grad.new_empty(col.shape)
    _native.sparse_linear_grad_values(_dense(grad), _dense(x), _dense(crow), _dense(col), out, panel)
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
    out = _rows(x, weight_scale.shape[0])
    _native.int8_sparse_linear(
        _dense(x),
        _dense(values),
        _dense(crow),
        _dense(col),
        _dense(weight_scale),
        _dense(row_sum),
        _optional_dense(bias),
        out,
        panel,
    )
    return out


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _native.fused_dropout(_dense(x), _optional_dense(bias), _optional_dense(residual), seed, out, p, activation)
    return out


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _native.fused_dropout_backward(_dense(grad), _dense(x), _optional_dense(bias), seed, out, p, activation)
    return out


def _double(x: Tensor, *rest: Any) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


_dispatch.register(
    "cpu",
    {
        "quantize_rows": Candidate("cpu", quantize_rows),
        "int8_sparse_linear": Candidate("cpu", int8_sparse_linear),
        "sparse_linear": Candidate("cpu", sparse_linear, _double),
        "sparse_linear_grad_input": Candidate("cpu", sparse_linear_grad_input, _double),
        "sparse_linear_grad_values": Candidate("cpu", sparse_linear_grad_values, _double),
    },
)
