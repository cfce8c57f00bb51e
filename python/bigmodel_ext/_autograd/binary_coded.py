"""binary_coded_linear."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext._autograd._common import before, column_sums, register

_ops = torch.ops.bigmodel_ext


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, scales, bias, ctx.out_features, ctx.group_size, ctx.activation = inputs
    ctx.save_for_backward(x, packed, scales, bias)


def _grad_scales(grad: Tensor, x: Tensor, signs: Tensor, group_size: int) -> Tensor:
    """alpha's gradient, float32, as scales are laid out."""
    n, k = signs.shape[0], x.shape[-1]
    q, scale = _reference.quantize_rows(x.reshape(math.prod(x.shape[:-1]), k))
    dweight = grad.reshape(-1, n).float().T @ (q * scale[:, None])
    planes = []
    for b in range(signs.shape[1]):
        terms = dweight * _reference.binary_spins(signs[:, b : b + 1], k)[:, 0]
        planes.append(torch.nn.functional.pad(terms, (0, -k % group_size)).unflatten(1, (-1, group_size)).sum(-1))
    return _reference.binary_scales(torch.stack(planes, -1))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, packed, scales, bias = ctx.saved_tensors
    n, size, needs = ctx.out_features, ctx.group_size, ctx.needs_input_grad
    grad = before(ctx.activation, grad, lambda: _ops.binary_coded_linear(x, packed, scales, bias, n, size))
    dx = dscales = None
    if needs[0] or needs[2]:
        signs = _reference.binary_signs(packed, n, x.shape[-1], size)
        if needs[0]:
            weight = _reference.binary_decode(signs, _reference.binary_alpha(scales, n), x.shape[-1], size)
            dx = (grad.float() @ weight).to(grad.dtype)
        if needs[2]:
            dscales = _grad_scales(grad, x, signs, size).to(scales.dtype)
    return dx, None, dscales, column_sums(grad, bias) if needs[3] else None, None, None, None


register("binary_coded_linear", _setup, _backward)
