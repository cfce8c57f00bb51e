"""The spins and scales of one layer's weight: from a start by way of least squares to a state of low energy.

The energy of ``v ~ w`` is ``E = sum over rows of (v - w)^T H (v - w)``, H = X^T X / M + damping * mean(diag) * I: what
the layer's output changes by on the calibration inputs X (an Ising energy: quadratic in the spins, with couplings
``alpha_b alpha_c H_kl`` and fields ``-alpha_b (H w)_k``). Every stage keeps the better of each row: E never
rises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bigmodel_ext import functional as F
from bigmodel_ext.nn import BinaryCodedLinear

_BETTER = 1 - 1e-5  # of a row's energy: less is within what rounding can feign
_SCALE_SWEEPS = 4  # over the groups, each solved exactly with the others kept: near the joint least squares
_CLIPS = tuple(1.0 - 0.05 * i for i in range(13))  # of a group's largest magnitude: where an even grid may end
_ROWS = 256  # worked on at a time where float64 copies are made


@dataclass(frozen=True)
class Schedule:
    """sweeps: the most of a descent; restarts: starts over with the scales found; heats: of annealing's sweeps."""

    sweeps: int
    restarts: int
    heats: tuple[float, ...]
    seed: int


@dataclass
class State:
    """codes uint8 [N,K] and alpha float16 [N,G,bits] as in `functional.ising_decode`, the energy of each row, and the
    whole energy after each stage by its name."""

    codes: Tensor
    alpha: Tensor
    rows: Tensor
    energies: dict[str, float] = field(default_factory=dict)

    @property
    def spins(self) -> Tensor:
        """int8 [N, bits, K] of -1 and +1."""
        planes = torch.arange(self.alpha.shape[2], device=self.codes.device)[:, None]
        return ((self.codes[:, None] >> planes & 1) * 2).to(torch.int8) - 1


class Problem:
    """A weight, the moments of its inputs, and what is derived from them once.

    Args:
        weight: [N,K] of a floating dtype, finite.
        moments: H float [K,K], symmetric, not indefinite; None: the identity.
        group_size: inputs that share scales.
        damping: this share of H's mean diagonal is added to it.

    Raises:
        ValueError: moments has another shape or is not finite.
    """

    def __init__(self, weight: Tensor, moments: Tensor | None, group_size: int, damping: float) -> None:
        self.weight, self.group_size = weight.detach().float().contiguous(), group_size
        k = weight.shape[1]
        if moments is not None and (tuple(moments.shape) != (k, k) or not bool(moments.isfinite().all())):
            raise ValueError(f"moments must be finite [{k}, {k}], got shape {list(moments.shape)}")
        eye = torch.eye(k, dtype=torch.float64, device=weight.device)
        wide = eye if moments is None else moments.double()
        mean = float(wide.diagonal().mean())
        self.unit = mean if mean > 0 else 1.0
        # Inputs that are always zero leave nothing to choose by but the weights themselves.
        wide = (wide + wide.mT) / (2 * self.unit) + (damping if mean > 0 else 1.0) * eye
        self.moments = wide.float()
        # The inputs that matter most come last in the order and are chosen first, when all the others can still yield.
        self.order = wide.diagonal().argsort()
        lower = torch.linalg.cholesky(wide[self.order][:, self.order])
        self.factor = (lower / lower.diagonal()).float()

    def energy(self, codes: Tensor, alpha: Tensor) -> Tensor:
        """Of each row: float64 [N], in units of H's mean diagonal."""
        found = []
        for i in range(0, len(codes), _ROWS):
            piece = slice(i, i + _ROWS)
            error = F.ising_decode(codes[piece], alpha[piece], self.group_size) - self.weight[piece]
            found.append(((error @ self.moments).double() * error).sum(1))
        return torch.cat(found) if found else self.weight.new_zeros(0, dtype=torch.float64)

    def start(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        codes = F.ising_start(self.weight, self.factor, self.order, alpha, group_size=self.group_size)
        return codes, alpha

    def descend(
        self, state: tuple[Tensor, Tensor], heats: tuple[float, ...], seed: int = 0, spins: bool = True
    ) -> tuple[Tensor, Tensor]:
        return F.ising_descend(
            self.weight, self.moments, *state, group_size=self.group_size, temperatures=heats, spins=spins, seed=seed
        )


def alternating(linear: nn.Linear, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The code that knows no data (Xu et al. 2018; see `nn.BinaryCodedLinear.from_float`): codes and alpha."""
    layer = BinaryCodedLinear.from_float(linear, bits, group_size)
    signs = layer.signs[..., None] >> torch.arange(8, dtype=torch.uint8, device=linear.weight.device) & 1
    codes = linear.weight.new_zeros(linear.weight.shape, dtype=torch.uint8)
    for b in range(bits):
        codes |= signs[:, b].flatten(1)[:, : linear.in_features] << b
    return codes, layer.alpha


def even_scales(weight: Tensor, bits: int, group_size: int, clips: tuple[float, ...] = _CLIPS) -> Tensor:
    """float16 [N, ceil(K / group_size), bits]: ``step / 2 * 2^b``, whose sums are an even grid about 0 that ends at one
    of the clips times a group's largest magnitude, the one that leaves least of that group's error."""
    n, k = weight.shape
    groups = nn.functional.pad(weight.float(), (0, -k % group_size)).view(n, -1, group_size)
    top, largest = (1 << bits) - 1, groups.abs().amax(-1, keepdim=True)
    best = steps = torch.zeros_like(largest)
    for i, clip in enumerate(clips):
        step = (largest * (2 * clip / top)).clamp_min(torch.finfo(torch.float16).tiny)
        level = ((groups / step + top / 2).round().clamp(0, top) - top / 2) * step
        error = (level - groups).square().sum(-1, keepdim=True)
        better = error < best if i else torch.ones_like(error, dtype=torch.bool)
        best, steps = torch.where(better, error, best), torch.where(better, step, steps)
    return (steps * 2.0 ** torch.arange(-1, bits - 1, device=weight.device)).half()


def _keep(problem: Problem, state: State, found: tuple[Tensor, Tensor], stage: str) -> None:
    """Of each row the better of the state and what was found."""
    rows = problem.energy(*found)
    better = rows < state.rows * _BETTER
    state.codes[better], state.alpha[better], state.rows[better] = found[0][better], found[1][better], rows[better]
    state.energies[stage] = float(state.rows.sum()) * problem.unit


def search(problem: Problem, linear: nn.Linear, bits: int, schedule: Schedule) -> State:
    """Spins and scales of a layer's weight. The stages, by their names in `State.energies`:

    nearest: the code that knows no data; start: one input after the other, making up for the errors of those before,
    from three sets of scales: those of the first stage, even grids that fit the weights best, and even grids that
    cover them all, which leave room to make up for errors where few inputs matter much; scales: least squares, spins
    kept; descent: spins one by one and scales by turns until little is gained, and again from a start with the scales
    so found; annealing, if the schedule has any.
    """
    codes, alpha = alternating(linear, bits, problem.group_size)
    state = State(codes, alpha, torch.full(codes.shape[:1], torch.inf, dtype=torch.float64, device=codes.device))
    _keep(problem, state, (codes.clone(), alpha.clone()), "nearest")
    begun = [
        alpha.clone(),
        *(even_scales(problem.weight, bits, problem.group_size, clips) for clips in (_CLIPS, (1.0,))),
    ]
    for scales in begun:
        _keep(problem, state, problem.start(scales), "start")
    still = (0.0,) * _SCALE_SWEEPS
    _keep(problem, state, problem.descend((state.codes, state.alpha), still, spins=False), "scales")
    descent = (0.0,) * schedule.sweeps
    _keep(problem, state, problem.descend((state.codes, state.alpha), descent), "descent")
    for _ in range(schedule.restarts):
        _keep(problem, state, problem.descend(problem.start(state.alpha), descent), "descent")
    if schedule.heats:
        heats = (*schedule.heats, *descent)
        _keep(problem, state, problem.descend((state.codes, state.alpha), heats, schedule.seed), "annealing")
    return state
