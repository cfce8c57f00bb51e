"""Rounding weights to a grid at random or by rate and distortion, each error fed back into the weights still to come.

Weights W [N, K] meet inputs of second moment H [K, K]; what rounding to Q does to the layer's output is
``trace((W - Q) H (W - Q)^T)``. Columns are rounded in the order of falling H_kk; with ``H^-1 = U^T U`` (U upper) the
error ``e_k = w'_k - q_k`` of one moves the ones after it, ``w'_j -= e_k U_kj / U_kk`` (Frantar et al. 2022, GPTQ), and
the whole is ``sum_k e_k^2 / U_kk^2``. Since a move is linear in errors of mean zero, E[q] = w survives it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 127  # the int8 grid is symmetric
_LAZY = 64  # columns whose moves are gathered before the rest of the matrix sees them
_DAMPING = 0.01  # of the mean of H's diagonal, added to it: directions without data are not free


@dataclass(frozen=True)
class Block:
    """Weights that meet the same inputs: a linear layer's, or those of a group of a convolution.

    weight float32 [N, K] and moment (H, or None for the identity) as they are; the rest in the order of rounding:
    order int64 [K], moves float32 [K, K] (U_kj / U_kk), cost float32 [K] (1 / U_kk^2)."""

    weight: Tensor
    moment: Tensor | None
    order: Tensor
    moves: Tensor | None
    cost: Tensor

    @classmethod
    def of(cls, weight: Tensor, moment: Tensor | None) -> Block:
        """Raises ValueError if H holds NaN or infinity."""
        weight = weight.detach().float()
        k = weight.shape[1]
        if moment is None:
            return cls(weight, None, torch.arange(k), None, torch.ones(k))
        if not bool(moment.isfinite().all()):
            raise ValueError("the second moments of its inputs are not finite")
        h = moment.double()
        order = h.diagonal().argsort(descending=True, stable=True)
        h = h[order][:, order]
        floor = max(float(h.diagonal().mean()) * _DAMPING, 1e-30)
        h = h + floor * torch.eye(k, dtype=h.dtype)
        # With J reversing the order, J H J = L L^T gives H^-1 = U^T U with U = (J L J)^-1.
        lower = torch.linalg.cholesky(h.flip(0, 1))
        upper = torch.linalg.solve_triangular(lower, torch.eye(k, dtype=h.dtype), upper=False).flip(0, 1)
        diagonal = upper.diagonal()
        moves, cost = (upper / diagonal[:, None]).float(), (1 / diagonal.square()).float()
        return cls(weight, moment, order, moves, cost)

    def distortion(self, q: Tensor, step: Tensor) -> float:
        """``trace((W - Q) H (W - Q)^T)`` for Q = q * step, q int8 [N, K], step [N]."""
        error = (self.weight - q.float() * step[:, None]).double()
        if self.moment is None:
            return float(error.square().sum())
        return float(((error @ self.moment.double()) * error).sum())


@dataclass(frozen=True)
class Unbiased:
    """The two neighbours, ``P(ceil) = w / step - floor(w / step)``: E[q] = w wherever q is not clipped."""

    noise: Tensor  # uniform in [0, 1), [K, N]

    def __call__(self, w: Tensor, k: int, step: Tensor, cost: float) -> Tensor:
        return (w / step + self.noise[k]).floor_().clamp_(-MOST, MOST)


@dataclass(frozen=True)
class Nearest:
    """Round half to even."""

    def __call__(self, w: Tensor, k: int, step: Tensor, cost: float) -> Tensor:
        return (w / step).round_().clamp_(-MOST, MOST)


@dataclass(frozen=True)
class EntropyConstrained:
    """``P(q | w) ~ exp(-(cost (w - q)^2 + price bits(q)) / temperature)`` over the neighbours of w and 0. With
    temperature = price * log2(e) that is ``p(q) exp(-beta (w - q)^2)``, the Blahut-Arimoto form; at 0, the form of
    least cost, it takes the minimum: the nearest grid point, but for thresholds moved towards likelier ones."""

    bits: Tensor  # -log2 p of the symbols -127..127, [255]
    price: float  # of a bit, in the unit of the distortion
    temperature: float
    noise: Tensor | None  # uniform in [0, 1), [K, N]

    def __call__(self, w: Tensor, k: int, step: Tensor, cost: float) -> Tensor:
        low = (w / step).floor_()
        near = [(low + i).clamp_(-MOST, MOST) for i in (-1, 0, 1, 2)]
        candidates = torch.stack([*near, torch.zeros_like(low)])
        total = cost * (w - candidates * step).square_() + self.price * self.bits[candidates.long() + MOST]
        if self.temperature > 0 and self.noise is not None:
            return self._drawn(candidates, total, self.noise[k])
        return candidates.gather(0, total.argmin(0, keepdim=True))[0]

    def _drawn(self, candidates: Tensor, total: Tensor, noise: Tensor) -> Tensor:
        for i in range(1, len(candidates)):  # the same candidate counts once
            total[i].masked_fill_((candidates[:i] == candidates[i]).any(0), torch.inf)
        share = torch.softmax(-total / self.temperature, 0).cumsum(0)
        place = (share < noise * share[-1]).sum(0, keepdim=True).clamp_(max=len(candidates) - 1)
        return candidates.gather(0, place)[0]


Rule = Unbiased | Nearest | EntropyConstrained


def noise(seed: int, name: str, shape: tuple[int, int]) -> Tensor:
    """Uniform float32 in [0, 1) that depends on these alone."""
    generator = torch.Generator().manual_seed((seed & 0xFFFFFFFF) << 31 ^ zlib.crc32(name.encode()))
    return torch.rand(shape, generator=generator)


def rounded(block: Block, step: Tensor, rule: Rule) -> Tensor:
    """q int8 [N, K] for steps float32 [N]; q * step stands for the weights."""
    work = block.weight.T[block.order].contiguous()  # [K, N]
    q = torch.empty_like(work)
    if block.moves is None:
        for k in range(len(work)):
            q[k] = rule(work[k], k, step, 1.0)
    else:
        _fed_back(work, q, block.moves, block.cost.tolist(), step, rule)
    back = torch.empty_like(q)
    back[block.order] = q
    return back.T.to(torch.int8).contiguous()


def _fed_back(work: Tensor, q: Tensor, moves: Tensor, cost: list[float], step: Tensor, rule: Rule) -> None:
    columns = len(work)
    for first in range(0, columns, _LAZY):
        last = min(first + _LAZY, columns)
        errors = torch.empty_like(work[first:last])
        for k in range(first, last):
            q[k] = rule(work[k], k, step, cost[k])
            errors[k - first] = work[k] - q[k] * step
            work[k + 1 : last] -= moves[k, k + 1 : last, None] * errors[k - first]
        work[last:] -= moves[first:last, last:].T @ errors
