"""2:4 weights: of every four neighbouring weights of a row at most two are not 0, and two are stored.

    values [ceil(N/32), ceil(K/32), 8, 2, 32]        tiles of 32 rows by 32 columns: group of four columns, first or
                                                    second of its two weights, row
    index  uint8 [ceil(N/32), ceil(K/32), 32, 4]    a row's 16 positions within their groups, 2 bits each, the first in
                                                    the lowest bits of the first byte

Rows lie side by side, as the kernels take them: the format is saved as it is, there is no packed copy. Where a group
has fewer than two weights, zeros are stored at its first free positions. N and K are padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference import semi_positions, semi_to_dense

TILE = 32

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def _pair_table() -> list[tuple[int, int]]:
    """For each set of kept positions (bit i: position i), the first pair of positions that holds it all."""
    holds = [[pair for pair in _PAIRS if not kept & ~(1 << pair[0] | 1 << pair[1])] for kept in range(16)]
    return [found[0] if found else (0, 0) for found in holds]


def violation(mask: Tensor) -> str | None:
    """Where a bool mask [N,K] keeps more than two of a group of four, or None."""
    n, k = mask.shape
    counts = torch.nn.functional.pad(mask, (0, -k % 4)).view(n, -(-k // 4), 4).sum(-1)
    broken = (counts > 2).nonzero()
    if not len(broken):
        return None
    row, group = broken[0].tolist()
    columns = f"columns {4 * group} to {min(4 * group + 3, k - 1)}"
    return f"row {row}, group {group} ({columns}) keeps {int(counts[row, group])} of 4, at most 2 can be"


def pack(weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Dense [N,K] -> (values, index). Entries where mask (default: weight != 0, so NaN too) is True are stored.

    Raises:
        ValueError: weight is not [N,K], mask not bool [N,K], or a group of four keeps more than two.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight must be [N,K], got shape {list(weight.shape)}")
    if mask is None:
        mask = weight != 0
    elif mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}")
    problem = violation(mask)
    if problem is not None:
        raise ValueError(f"the mask is not 2:4: {problem}")
    n, k = weight.shape
    rows, columns = -(-n // TILE), -(-k // TILE)
    pad = (0, columns * TILE - k, 0, rows * TILE - n)
    groups = torch.nn.functional.pad(torch.where(mask, weight, 0.0), pad).view(rows, TILE, columns, TILE // 4, 4)
    kept = torch.nn.functional.pad(mask, pad).view(rows, TILE, columns, TILE // 4, 4)
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=weight.device)
    table = torch.tensor(_pair_table(), device=weight.device)
    pairs = table[(kept * bits).sum(-1)]  # [rows, TILE, columns, groups, 2]
    values = groups.gather(-1, pairs).permute(0, 2, 3, 4, 1).contiguous()
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=weight.device)
    quads = pairs.to(torch.uint8).view(rows, TILE, columns, 4, 4)
    index = (quads << shifts).sum(-1, dtype=torch.uint8).transpose(1, 2).contiguous()
    return values, index


def unpack(values: Tensor, index: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of :func:`pack`: dense [N,K]."""
    return semi_to_dense(values, index, out_features, in_features)


def mask_of(index: Tensor, out_features: int, in_features: int) -> Tensor:
    """bool [N,K]: which entries are stored, zeros among them."""
    shape = (*index.shape[:2], TILE // 4, 2, TILE)
    return semi_to_dense(torch.ones(shape, dtype=torch.bool, device=index.device), index, out_features, in_features)


def invalid(index: Tensor, out_features: int, in_features: int) -> str | None:
    """What is wrong with this index, or None. Meta tensors pass: they hold nothing."""
    shape = (-(-out_features // TILE), -(-in_features // TILE), TILE, 4)
    if index.dtype != torch.uint8 or tuple(index.shape) != shape:
        return f"index must be uint8 {list(shape)}, got {index.dtype} {list(index.shape)}"
    if index.is_meta:
        return None
    positions = semi_positions(index)
    if bool((positions[:, :, :, 0] >= positions[:, :, :, 1]).any()):
        return "index must increase within a group of four"
    return None
