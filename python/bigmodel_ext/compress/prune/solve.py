"""Pruning one matrix: which weights stay, and what they become, so that its output changes least.

All of it minimises ``E(V) = trace((V - T) H (V - T)^T)`` over matrices V [N,K] with the zeros asked for; T [N,K] is
what V stands for, H [K,K] (symmetric, positive definite) the second moments of its inputs. `Choose` says which weights
stay: choose(scores [N, columns], first) -> bool mask of that shape, for the columns from `first` on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor, int], Tensor]

BLOCK = 128  # columns that SparseGPT prunes before it updates the rest; a multiple of 4
ROUNDS = 12  # of ADMM, with a larger penalty each
STEPS = 3  # of ADMM in a round
PENALTY, GROWTH = 0.1, 1.6  # the first round's, of the scaled H's unit diagonal, and from round to round
CONJUGATE_STEPS = 20


def error(v: Tensor, target: Tensor, h: Tensor) -> float:
    """``trace((V - T) H (V - T)^T)``."""
    difference = (v - target).double()
    return float(((difference @ h.double()) * difference).sum())


def sparsegpt(target: Tensor, h: Tensor, choose: Choose) -> Tensor:
    """SparseGPT (Frantar & Alistarh 2023): V, column by column. With U the upper Cholesky factor of H^-1, a weight w_j
    that goes costs ``w_j^2 / U_jj^2``, and what makes up for it best is ``w_k -= w_j U_jk / U_jj`` in the columns
    behind it. `choose` is asked for blocks of 128 columns."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h.double()))
    upper = torch.linalg.cholesky(inverse, upper=True).to(target.dtype)
    v = target.clone()
    for first in range(0, v.shape[1], BLOCK):
        end = min(first + BLOCK, v.shape[1])
        block, factor = v[:, first:end], upper[first:end, first:end]
        stay = choose(block.square() / factor.diag().square(), first)
        errors = torch.zeros_like(block)
        for j in range(end - first):
            kept = torch.where(stay[:, j], block[:, j], 0.0)
            errors[:, j] = (block[:, j] - kept) / factor[j, j]
            block[:, j:] -= errors[:, j, None] * factor[None, j, j:]
            block[:, j] = kept
        v[:, end:] -= errors @ upper[first:end, end:]
    return v


def admm(target: Tensor, h: Tensor, choose: Choose) -> Tensor:
    """A mask by the alternating direction method of multipliers (ALPS: Meng et al. 2024): bool [N,K].

    H is scaled to a unit diagonal (and T with it); then in turn, with a penalty r that grows,
    ``V = (T H + r (D - U)) (H + r I)^-1``, ``D = V + U`` where `choose` keeps its squares and 0 elsewhere,
    ``U = U + V - D``: all of the weights weigh up together what goes, where SparseGPT only looks ahead.
    """
    scale = h.diag().sqrt()
    scaled, wanted = h / (scale[:, None] * scale), target * scale
    stay = choose(wanted.square(), 0)
    pushed, v, d, u, penalty = wanted @ scaled, wanted, wanted * stay, torch.zeros_like(wanted), PENALTY
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    for _ in range(ROUNDS):
        inverse, before = torch.cholesky_inverse(torch.linalg.cholesky(scaled + penalty * identity)), stay
        for _ in range(STEPS):
            v = (pushed + penalty * (d - u)) @ inverse
            u = v + u
            stay = choose(u.square(), 0)
            d = torch.where(stay, u, 0.0)
            u = u - d
        if penalty > 1.0 and torch.equal(stay, before):
            break  # larger penalties only hold faster to what there is
        penalty, u = penalty * GROWTH, u / GROWTH
    return stay


def least_squares(target: Tensor, h: Tensor, stay: Tensor, steps: int = CONJUGATE_STEPS) -> Tensor:
    """The V of least E with zeros where `stay` is False: conjugate gradients for all rows at once, preconditioned by
    H's diagonal, from T with those zeros. Exact after as many steps as a row has weights, close after a few dozen."""
    v = torch.where(stay, target, 0.0)
    diagonal, residual = h.diag(), torch.where(stay, (target - v) @ h, 0.0)
    scaled = residual / diagonal
    direction, size = scaled, (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        moved = torch.where(stay, direction @ h, 0.0)
        length = (direction * moved).sum(1, keepdim=True)
        step = torch.where(length > 0, size / length, 0.0)
        v, residual = v + step * direction, residual - step * moved
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(before > 0, size / before, 0.0) * direction
    return v
