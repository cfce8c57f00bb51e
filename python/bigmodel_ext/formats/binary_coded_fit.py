"""Binary codes of a given weight without any data: a start, then signs and scales in turn.

Xu et al., "Alternating Multi-bit Quantization for Recurrent Neural Networks" (2018), for each output and group; from an
even grid too, because the turns end in the optimum next to where they start, and from 4 bits on the greedy start's is
the worse one.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bigmodel_ext._checks import require_binary_code

_PIECE = 1 << 21  # signs that are worked on at a time: what is computed from them stays in the caches
_RIDGE = 1e-6  # of a group's inputs: planes that are equal or opposite have no solution of their own


def fit(weight: Tensor, bits: int, group_size: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Codes that make ``sum_k (W[n,k] - sum_b alpha[n,g,b] s[n,b,k])^2`` small in each group g. First greedily,
    ``s_b = sign(r), alpha_b = mean |r|`` of what is left (r) after each plane; and, second start, the even grid from
    -max |W| to max |W|. From each by turns alpha by least squares, rounded to float16, and each weight's signs the
    nearest of the 2^bits sums, as long as a group gets better. The better one of each group is taken.

    Args:
        weight: [N,K] of a floating dtype.
        bits: 1 to 8.
        group_size: inputs that share scales; a multiple of 8.
        iterations: the most turns from each start; 0: the greedy code as it is.

    Returns:
        spins int8 [N, bits, K] and alpha float16 [N, ceil(K/group_size), bits]. A group that holds NaN or an infinity
        gets alpha = NaN.

    Raises:
        ValueError: bits or group_size is out of range, weight is not 2-d, or a scale exceeds float16's range.
    """
    require_binary_code(bits, group_size)
    if weight.dim() != 2:
        raise ValueError(f"weight must be [N,K], got shape {list(weight.shape)}")
    n, k = weight.shape
    groups = -(-k // group_size)
    spins = torch.empty((n, bits, k), dtype=torch.int8, device=weight.device)
    alpha = torch.empty((n, groups, bits), dtype=torch.float16, device=weight.device)
    there = torch.arange(groups * group_size, device=weight.device).view(groups, group_size) < k
    step = max(1, _PIECE // max(1, k * bits))
    for i in range(0, n if k else 0, step):
        rows = weight.detach()[i : i + step].float()
        rows = torch.nn.functional.pad(rows, (0, groups * group_size - k)).view(-1, groups, group_size)
        s, a = _fit_groups(rows, there.float(), bits, iterations)
        spins[i : i + step] = s.transpose(1, 2).reshape(-1, bits, groups * group_size)[..., :k]
        alpha[i : i + step] = a
    if bool(alpha.isinf().any()):
        raise ValueError(f"a scale exceeds float16's range: the largest weight is {weight.abs().max().item()}")
    return spins, alpha


def _fit_groups(w: Tensor, there: Tensor, bits: int, iterations: int) -> tuple[Tensor, Tensor]:
    """w [n,G,size] -> spins [n,G,bits,size], alpha float16 [n,G,bits]. there [G,size]: 1 where there is an input."""
    finite = w.isfinite().all(-1)
    w = torch.where(finite[..., None], w, 0.0)
    spins, alpha, error = _alternate(w, *_greedy(w, there, bits), there, iterations)
    if bits > 1 and iterations:
        s, a, other = _alternate(w, *_even(w, bits), there, iterations)
        better = other < error
        spins, alpha = torch.where(better[..., None, None], s, spins), torch.where(better[..., None], a, alpha)
    return spins.to(torch.int8), torch.where(finite[..., None], alpha, torch.nan).half()


def _alternate(
    w: Tensor, spins: Tensor, alpha: Tensor, there: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Better spins and alpha, and the error that is left of each group."""
    least = _error(w, spins, alpha, there)
    for _ in range(iterations):
        a = _least_squares(w, spins, there).half().float()
        s = _nearest(w, a)
        error = _error(w, s, a, there)
        better = error < least
        if not bool(better.any()):
            break
        least = torch.where(better, error, least)
        alpha = torch.where(better[..., None], a, alpha)
        spins = torch.where(better[..., None, None], s, spins)
    return spins, alpha, least


def _greedy(w: Tensor, there: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    rest, planes, scales = w, [], []
    for _ in range(bits):
        sign = torch.where(rest < 0, -1.0, 1.0)
        scale = ((rest.abs() * there).sum(-1) / there.sum(-1)).half().float()
        rest = rest - scale[..., None] * sign
        planes.append(sign)
        scales.append(scale)
    return torch.stack(planes, 2), torch.stack(scales, 2)


def _even(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    powers = 2.0 ** torch.arange(bits, device=w.device) / (2**bits - 1)
    alpha = (w.abs().amax(-1, keepdim=True) * powers).half().float()
    return _nearest(w, alpha), alpha


def _error(w: Tensor, spins: Tensor, alpha: Tensor, there: Tensor) -> Tensor:
    """[n,G]; infinite where a scale is not finite, so that no such code counts as better."""
    rest = (w - (alpha[..., None] * spins).sum(2)) * there
    return rest.square().sum(-1).nan_to_num(nan=torch.inf)


def _least_squares(w: Tensor, spins: Tensor, there: Tensor) -> Tensor:
    """alpha [n,G,bits] that fits best to given signs."""
    planes = spins * there[:, None]
    gram = planes @ planes.transpose(-1, -2)
    ridge = _RIDGE * there.sum(-1)[:, None, None] * torch.eye(spins.shape[2], device=w.device)
    return torch.linalg.solve(gram + ridge, planes @ w[..., None])[..., 0]


def _nearest(w: Tensor, alpha: Tensor) -> Tensor:
    """spins [n,G,bits,size]: of each weight those whose sum is nearest."""
    codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=alpha.shape[-1])), device=w.device)
    levels, order = (alpha @ codes.T).sort(-1)
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    return codes[order.gather(-1, torch.searchsorted(middles, w))].transpose(-1, -2)
