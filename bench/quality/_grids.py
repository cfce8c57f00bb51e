"""Peers that code a weight with few bits, at a number of bits that is counted: each method gives the decoded weight.

A uniform grid's group has a float16 step and an integer zero point of as many bits as a weight; HQQ's has two float16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid(group: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step (as float16 holds it) and zero point of the grid from the least to the largest of each last dimension."""
    low, high, top = group.amin(-1, keepdim=True).clamp(max=0), group.amax(-1, keepdim=True).clamp(min=0), 2**bits - 1
    step = ((high - low) / top).half().float().clamp_min(1e-7)
    return step, (-low / step).round().clamp(0, top)


def on_grid(weight: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ((weight / step + zero).round().clamp(0, 2**bits - 1) - zero) * step


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Round to nearest."""
    pieces = weight.split(group_size, 1)
    return torch.cat([on_grid(piece, *grid(piece, bits), bits) for piece in pieces], 1)


def hqq(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Badri & Shaji 2023, the hqq package's own solver (its defaults), groups along the inputs.

    Raises:
        ImportError: the package is not installed.
    """
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        weight, nbits=bits, group_size=group_size, axis=1, device="cpu", bitpack=False, compute_dtype=torch.float32
    )
    decoded: Tensor = Quantizer.dequantize(codes, meta)
    return decoded.view(weight.shape).float()


def gptq(
    weight: Tensor, moments: Tensor, bits: int, group_size: int, damping: float = 0.01, by_diagonal: bool = False
) -> Tensor:
    """Frantar et al. 2022: inputs in turn, each one's error made up for by those not yet coded. A group's
    grid is that of its weights when its turn comes; by_diagonal: inputs with the largest moments first ("act order"),
    the grids those of the given weights."""
    k = weight.shape[1]
    wide = moments.double() + damping * moments.diagonal().double().mean() * torch.eye(k, dtype=torch.float64)
    order = wide.diagonal().argsort(descending=True) if by_diagonal else torch.arange(k)
    grids = [grid(weight[:, i : i + group_size], bits) for i in range(0, k, group_size)]
    inverse = torch.linalg.inv(wide[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    rest, coded = weight[:, order].clone(), torch.empty_like(weight)
    for place, i in enumerate(order.tolist()):
        if not by_diagonal and place % group_size == 0:
            grids[place // group_size] = grid(rest[:, place : place + group_size], bits)
        column = rest[:, place : place + 1]
        found = on_grid(column, *grids[i // group_size], bits)
        coded[:, i : i + 1] = found
        rest[:, place:] -= (column - found) / upper[place, place] * upper[place, place:]
    return coded
