"""2:4 weights: of every four neighbouring weights of a row at most two are not 0, and two are stored.

    values [ceil(N/32), ceil(K/32), 8, 2, 32]        tiles of 32 rows by 32 columns: group of four columns, first or
                                                    second of its two weights, row
    index  uint8 [ceil(N/32), ceil(K/32), 32, 4]    a row's 16 positions within their groups, 2 bits each, the first in
                                                    the lowest bits of the first byte

int8 values are [ceil(N/32), ceil(K/32), 32, 16] instead: a row's 16 weights side by side.

Rows lie side by side, as the kernels take them: the format is saved as it is, there is no packed copy. Where a group
has fewer than two weights, zeros are stored at its first free positions. N and K are padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference import int8_semi_to_dense, semi_positions, semi_to_dense

TILE = 32


def violation(mask: Tensor) -> str | None:
    """Where a bool mask [N,K] keeps more than two of a group of four, or None."""
    n, k = mask.shape
    k0, k1, k2, k3 = torch.nn.functional.pad(mask, (0, -k % 4)).view(n, -(-k // 4), 4).unbind(-1)
    broken = (k0 & k1 & (k2 | k3)) | (k2 & k3 & (k0 | k1))
    if not bool(broken.any()):
        return None
    row, group = broken.nonzero()[0].tolist()
    first, end = 4 * group, min(4 * group + 4, k)
    kept = int(mask[row, first:end].sum())
    return f"row {row}, group {group} (columns {first} to {end - 1}) keeps {kept} of 4, at most 2 can be"


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
    w, kept = _tiles(torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))), _tiles(mask)
    k0, k1, k2, k3 = kept.unbind(3)
    w0, w1, w2, w3 = w.unbind(3)
    # The last weight that is kept comes second, unless it is the very first; what is kept before it comes first.
    second = torch.where(k3, w3, torch.where(k2, w2, w1))
    first_is_2, first_is_1 = k2 & k3, k1 & (k2 | k3) & ~k0
    first = torch.where(first_is_2, w2, torch.where(first_is_1, w1, w0))
    at = first_is_1.to(torch.uint8) + first_is_2.to(torch.uint8) * 2
    at += (1 + (k2 & ~k3).to(torch.uint8) + k3.to(torch.uint8) * 2) * 4
    index = (at[:, :, 0::2] + at[:, :, 1::2] * 16).transpose(2, 3).contiguous()
    return torch.stack([first, second], 3), index


def _tiles(dense: Tensor) -> Tensor:
    """[N,K] -> [ceil(N/32), ceil(K/32), 8, 4, 32], zero-padded: group of four, position in it, row."""
    n, k = dense.shape
    rows, columns = -(-n // TILE), -(-k // TILE)
    padded = torch.nn.functional.pad(dense, (0, columns * TILE - k, 0, rows * TILE - n))
    return padded.view(rows, TILE, columns, TILE // 4, 4).permute(0, 2, 3, 4, 1).contiguous()


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


def pack_int8(weight_q: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int8 [N,K] -> (values int8 [ceil(N/32), ceil(K/32), 32, 16], index), as :func:`pack` chooses them.

    Raises:
        TypeError: weight_q is not int8.
        ValueError: as :func:`pack`.
    """
    if weight_q.dtype != torch.int8:
        raise TypeError(f"weight_q must be int8, got {weight_q.dtype}")
    values, index = pack(weight_q, mask)
    return values.permute(0, 1, 4, 2, 3).flatten(3).contiguous(), index


def unpack_int8(values: Tensor, index: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of :func:`pack_int8`: int8 [N,K]."""
    return int8_semi_to_dense(values, index, out_features, in_features)
