"""Square blocks of 16, 32 or 64: block-CSR whose blocks are dense.

    values [blocks, S, S]            block row by block row, in it by column; block i's W[n,k] is
                                     values[i, k - k0, n - n0]: rows of W lie side by side, as the kernels take them
    crow   int32 [ceil(N/S) + 1]     where block row r begins
    col    int32 [blocks]            block column

N and K are padded with zeros. The format is saved as it is: there is no packed copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._checks import BLOCK_SIZES
from bigmodel_ext._reference import block_rows, blocks_to_dense, cut_into_blocks

BLOCKSIZE = 32


def require_blocksize(blocksize: object) -> None:
    """Raises TypeError for what is no int, ValueError for another size than 16, 32 or 64."""
    if isinstance(blocksize, bool) or not isinstance(blocksize, int):
        raise TypeError(f"blocksize must be 16, 32 or 64, got {blocksize!r}")
    if blocksize not in BLOCK_SIZES:
        raise ValueError(f"blocksize must be 16, 32 or 64, got {blocksize}")


def pack(weight: Tensor, mask: Tensor | None = None, blocksize: int = BLOCKSIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Dense [N,K] -> (values, crow, col). A block is stored if mask (default: weight != 0, so NaN too) is True
    somewhere in it; in a stored block what mask leaves out is 0.

    Raises:
        ValueError: weight is not [N,K], mask not bool [N,K], or blocksize not 16, 32 or 64.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight must be [N,K], got shape {list(weight.shape)}")
    require_blocksize(blocksize)
    if mask is None:
        mask = weight != 0
    elif mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}")
    else:
        weight = torch.where(mask, weight, 0.0)
    (n, k), s = weight.shape, blocksize
    rows, columns = -(-n // s), -(-k // s)
    padded = torch.nn.functional.pad(mask, (0, columns * s - k, 0, rows * s - n))
    kept = padded.view(rows, s, columns, s).any(1).any(-1)
    ends = kept.sum(-1).cumsum(0)
    crow = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    col = torch.arange(kept.shape[1], device=weight.device, dtype=torch.int32).expand(kept.shape)[kept]
    return cut_into_blocks(weight, blocksize)[kept].contiguous(), crow, col


def unpack(values: Tensor, crow: Tensor, col: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of :func:`pack`: dense [N,K]."""
    return blocks_to_dense(values, crow, col, out_features, in_features)


def mask_of(crow: Tensor, col: Tensor, out_features: int, in_features: int, blocksize: int = BLOCKSIZE) -> Tensor:
    """bool [N,K]: which entries are stored."""
    blocks = torch.zeros((crow.shape[0] - 1, -(-in_features // blocksize)), dtype=torch.bool, device=crow.device)
    blocks[block_rows(crow), col.long()] = True
    return blocks.repeat_interleave(blocksize, 0).repeat_interleave(blocksize, 1)[:out_features, :in_features]


def invalid(crow: Tensor, col: Tensor, out_features: int, in_features: int, blocksize: int) -> str | None:
    """What is wrong with these indices, or None. Meta tensors pass: they hold nothing."""
    rows, columns = -(-out_features // blocksize), -(-in_features // blocksize)
    if crow.dtype != torch.int32 or tuple(crow.shape) != (rows + 1,):
        return f"crow must be int32 [{rows + 1}], got {crow.dtype} {list(crow.shape)}"
    if col.dtype != torch.int32 or col.dim() != 1:
        return f"col must be int32 [blocks], got {col.dtype} {list(col.shape)}"
    if crow.is_meta or col.is_meta:
        return None
    if int(crow[0]) != 0 or int(crow[-1]) != col.shape[0]:
        return f"crow must run from 0 to {col.shape[0]}, got {int(crow[0])} to {int(crow[-1])}"
    if bool((crow[1:] < crow[:-1]).any()):
        return "crow must not decrease"
    if bool((col < 0).any()) or bool((col >= columns).any()):
        return f"col must be in [0, {columns})"
    of = block_rows(crow)
    if bool(((of[1:] == of[:-1]) & (col[1:] <= col[:-1])).any()):
        return "col must increase within a block row"
    return None
