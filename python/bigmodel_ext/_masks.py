"""Which weights stay when a share of them is set to zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def largest_mask(score: Tensor, gone: int) -> Tensor:
    """bool, score's shape: in each row (the last dimension) all but the `gone` smallest. Of equal ones, the first stay;
    NaN counts as infinite."""
    if gone == 0:
        return torch.ones_like(score, dtype=torch.bool)
    ranked = score.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    last = ranked.kthvalue(gone, dim=-1, keepdim=True).values  # the largest that goes: ten times as fast as sorting
    above, equal = ranked > last, ranked == last
    room = score.shape[-1] - gone - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """bool, score's shape: all but the round(sparsity * numel) smallest."""
    return largest_mask(score.flatten(), round(sparsity * score.numel())).view(score.shape)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the weights that stay when the given share, of smallest magnitude, is set to zero."""
    return _largest(weight.detach().abs(), sparsity)


def block_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool [N,K]: the 1x4 blocks that stay when the given share, of smallest sum of squares, is set to zero."""
    k = weight.shape[1]
    blocks = nn.functional.pad(weight.detach().float(), (0, -k % 4)).view(weight.shape[0], -(-k // 4), 4)
    return _largest(blocks.square().sum(-1), sparsity).repeat_interleave(4, dim=1)[:, :k]


def square_block_mask(weight: Tensor, sparsity: float, blocksize: int) -> Tensor:
    """bool [N,K]: the square blocks that stay when the given share, of smallest sum of squares, is set to zero."""
    (n, k), s = weight.shape, blocksize
    padded = nn.functional.pad(weight.detach().float(), (0, -k % s, 0, -n % s))
    scores = padded.square().view(-(-n // s), s, -(-k // s), s).sum((1, 3))
    return _largest(scores, sparsity).repeat_interleave(s, 0).repeat_interleave(s, 1)[:n, :k]


def two_four_mask(weight: Tensor) -> Tensor:
    """bool [N,K]: of every four neighbours in a row the two of largest magnitude (of equal ones, the first)."""
    n, k = weight.shape
    # Padding comes last, behind zeros. NaN counts as the largest, so that it is not pruned silently.
    size = nn.functional.pad(weight.detach().abs().float().nan_to_num(math.inf, math.inf), (0, -k % 4), value=-1.0)
    a, b, c, d = size.view(n, -(-k // 4), 4).permute(2, 0, 1).contiguous()  # comparing strided numbers is slow
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d  # the first of equal ones wins
    # Of three comparisons with the others at least two are won.
    kept = (_two_of(ab, ac, ad), _two_of(~ab, bc, bd), _two_of(~ac, ~bc, cd), _two_of(~ad, ~bd, ~cd))
    return torch.stack(kept, -1).view(n, -1)[:, :k].contiguous()


def _two_of(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a & b) | (a & c) | (b & c)
