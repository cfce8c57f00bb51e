"""Dropout with its neighbours, and the norm behind it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_ext._checks._common import (
    FLOATS,
    require,
    require_activation,
    require_bias,
    require_dtype,
    require_features,
    require_shape,
)

NORMS = ("layer", "rms")


def check_dropout_seed(x: Tensor) -> None:
    pass


def check_fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> None:
    require_dtype("x", x, *FLOATS, torch.float64)
    require(0.0 <= p <= 1.0, lambda: f"p must be in [0, 1], got {p}")
    require_activation(activation)
    if bias is not None:
        require_features(x)
        require_bias(bias, x.shape[-1])
    if residual is not None:
        require_dtype("residual", residual, x.dtype)
        require_shape("residual", residual, *x.shape)
    if seed is None:
        require(p == 0.0, lambda: f"seed must be given when p > 0, got p={p}")
    else:
        require_dtype("seed", seed, torch.int64)
        require(seed.dim() == 0, lambda: f"seed must be a 0-d tensor, got shape {list(seed.shape)}")


def check_fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> None:
    check_fused_dropout(x, bias, grad, seed, p, activation)


def check_fused_dropout_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    p: float,
    activation: str,
    norm: str,
    eps: float,
) -> None:
    check_fused_dropout(x, bias, residual, seed, p, activation)
    require(norm in NORMS, lambda: f"norm must be one of {NORMS}, got {norm!r}")
    require(x.dim() >= 1 and x.shape[-1] >= 1, lambda: f"x must have at least 1 feature, got shape {list(x.shape)}")
    require(eps >= 0.0, lambda: f"eps must not be negative, got {eps}")
    for name, t in (("weight", weight), ("norm_bias", norm_bias)):
        if t is not None:
            require_dtype(name, t, *FLOATS, torch.float64)
            require_shape(name, t, x.shape[-1])


def check_fused_dropout_norm_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    p: float,
    activation: str,
    norm: str,
) -> None:
    check_fused_dropout_norm(x, bias, grad_y, seed, weight, None, p, activation, norm, 0.0)
    for name, t in (("grad_h", grad_h), ("h", h)):
        if t is not None:
            require_dtype(name, t, x.dtype)
            require_shape(name, t, *x.shape)
    rows = math.prod(x.shape[:-1])
    require_shape("mean", mean, rows if norm == "layer" else 0)
    require_shape("rstd", rstd, rows)
