"""Which weights stay when a share of them is set to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """bool, score's shape: all but the round(sparsity * numel) smallest (of equal ones, the first stay)."""
    keep = score.numel() - round(sparsity * score.numel())
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(descending=True, stable=True)[:keep]] = True
    return mask.view(score.shape)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the weights that stay when the given share, of smallest magnitude, is set to zero."""
    return _largest(weight.detach().abs(), sparsity)


def block_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the 1x4 blocks that stay when the given share, of smallest sum of squares, is set to zero."""
    k = weight.shape[1]
    blocks = nn.functional.pad(weight.detach().float(), (0, -k % 4)).view(weight.shape[0], -(-k // 4), 4)
    return _largest(blocks.square().sum(-1), sparsity).repeat_interleave(4, dim=1)[:, :k]
