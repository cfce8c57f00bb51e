"""Checks of the search for spins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_ext._checks._common import require, require_dtype, require_matrix, require_shape

ISING_MAX_BITS = 4


def _check_problem(weight: Tensor, name: str, matrix: Tensor, alpha: Tensor, group_size: int) -> None:
    require_matrix("weight", weight)
    require_dtype("weight", weight, torch.float32)
    n, k = weight.shape
    require_dtype(name, matrix, torch.float32)
    require_shape(name, matrix, k, k)
    require_dtype("alpha", alpha, torch.float16)
    require(alpha.dim() == 3, lambda: f"alpha must have 3 dimensions, got shape {list(alpha.shape)}")
    require(group_size >= 1, lambda: f"group_size must be at least 1, got {group_size}")
    require(
        1 <= alpha.shape[2] <= ISING_MAX_BITS,
        lambda: f"alpha must have 1 to {ISING_MAX_BITS} scales to a group, got shape {list(alpha.shape)}",
    )
    require_shape("alpha", alpha, n, -(-k // group_size), alpha.shape[2])


def check_ising_start(weight: Tensor, factor: Tensor, order: Tensor, alpha: Tensor, group_size: int) -> None:
    _check_problem(weight, "factor", factor, alpha, group_size)
    require_dtype("order", order, torch.int64)
    require_shape("order", order, weight.shape[1])


def check_ising_descend(
    weight: Tensor,
    moments: Tensor,
    codes: Tensor,
    alpha: Tensor,
    group_size: int,
    temperatures: list[float],
    spins: bool,
    scales: bool,
    seed: int,
) -> None:
    _check_problem(weight, "moments", moments, alpha, group_size)
    require_dtype("codes", codes, torch.uint8)
    require_shape("codes", codes, *weight.shape)
    for heat in temperatures:
        require(
            math.isfinite(heat) and heat >= 0.0,
            lambda heat=heat: f"temperatures must be finite and not negative, got {heat}",  # type: ignore[misc]
        )
