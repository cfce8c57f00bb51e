"""The search for spins."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _native


def ising_start(weight: Tensor, factor: Tensor, order: Tensor, alpha: Tensor, group_size: int) -> Tensor:
    codes = weight.new_zeros(weight.shape, dtype=torch.uint8)
    _native.ising_start(weight, factor, order, alpha, group_size, codes)
    return codes


def ising_descend(
    weight: Tensor,
    moments: Tensor,
    codes: Tensor,
    alpha: Tensor,
    group_size: int,
    temperatures: list[float],
    spins: bool,
    scales: bool,
    seed: int,
) -> tuple[Tensor, Tensor]:
    codes = codes.clone(memory_format=torch.contiguous_format)
    alpha = alpha.clone(memory_format=torch.contiguous_format)
    _native.ising_descend(weight, moments, codes, alpha, group_size, temperatures, spins, scales, seed)
    return codes, alpha
