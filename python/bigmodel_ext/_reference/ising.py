"""The search for spins, all rows side by side and the whole field brought up to date at each move."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference.dropout import philox_4x32

_DRAWS = 4096  # annealing draws from as many thresholds
_MASK32 = 0xFFFFFFFF


def _levels(alpha: Tensor) -> Tensor:
    """What each code stands for: scales [..., bits] -> [..., 2^bits]; bit b of a code says the sign of scale b."""
    bits = alpha.shape[-1]
    levels = alpha.new_zeros((*alpha.shape[:-1], 1 << bits), dtype=torch.float32)
    codes = torch.arange(1 << bits, device=alpha.device)
    for b in range(bits):
        levels += alpha[..., b : b + 1].float() * ((codes >> b & 1) * 2 - 1)
    return levels


def ising_decode(codes: Tensor, alpha: Tensor, group_size: int) -> Tensor:
    """float32 [N,K] = sum_b alpha[n, k // group_size, b] * (+1 if bit b of codes[n, k] else -1)."""
    group = torch.arange(codes.shape[1], device=codes.device) // group_size
    return _levels(alpha)[:, group].gather(2, codes.long()[..., None])[..., 0]


def _check_diagonal(name: str, matrix: Tensor) -> None:
    diagonal = matrix.diagonal()
    bad = ~((diagonal > 0) & (1 / diagonal).isfinite())
    if bool(bad.any()):
        at = int(bad.int().argmax())
        raise ValueError(f"{name} must have a positive diagonal, got {float(diagonal[at]):g} at input {at}")


def ising_start(weight: Tensor, factor: Tensor, order: Tensor, alpha: Tensor, group_size: int) -> Tensor:
    _check_diagonal("factor", factor)
    levels = _levels(alpha)
    field = torch.zeros_like(weight)  # by place in the order
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    for place in range(weight.shape[1] - 1, -1, -1):
        k = int(order[place])
        if not 0 <= k < weight.shape[1]:
            raise ValueError(f"order must hold inputs in [0, {weight.shape[1]}), got {k}")
        level = levels[:, k // group_size]
        target = weight[:, k] - field[:, place]
        code = (level - target[:, None]).square().argmin(1)
        codes[:, k] = code.to(torch.uint8)
        error = level.gather(1, code[:, None])[:, 0] - weight[:, k]
        field[:, :place] += error[:, None] * factor[place, :place]
    return codes


class _State:
    """v, its codes, scales and field f = H (v - w), kept up to date."""

    def __init__(self, weight: Tensor, moments: Tensor, codes: Tensor, alpha: Tensor, group_size: int) -> None:
        self.weight, self.moments, self.group_size = weight, moments, group_size
        self.codes, self.alpha = codes.long(), alpha.float()
        self.value = ising_decode(codes, alpha, group_size)
        self.field = (self.value - weight) @ moments

    def energy(self) -> Tensor:
        return ((self.value - self.weight) * self.field).sum(1)

    def set(self, k: int, code: Tensor, value: Tensor) -> None:
        self.field += (value - self.value[:, k])[:, None] * self.moments[k]
        self.codes[:, k], self.value[:, k] = code, value

    def descend(self, k: int) -> None:
        level, now = _levels(self.alpha[:, k // self.group_size]), self.value[:, k]
        target = now - self.field[:, k] / self.moments[k, k]
        far = (level - target[:, None]).square()
        best, code = far.min(1)
        moved = best < (now - target).square() * (1 - 1e-5)
        code = torch.where(moved, code, self.codes[:, k])
        self.set(k, code, level.gather(1, code[:, None])[:, 0])

    def anneal(self, k: int, temperature: Tensor, seed: int, sweep: int) -> None:
        level, now = _levels(self.alpha[:, k // self.group_size]), self.value[:, k]
        rows = torch.arange(len(now), device=now.device)
        counter = [torch.full_like(rows, k), rows, torch.full_like(rows, sweep), torch.zeros_like(rows)]
        draw = philox_4x32(counter, (seed & _MASK32, seed >> 32 & _MASK32))
        threshold = -((draw[0] % _DRAWS + 0.5).double() / _DRAWS).log().float()
        code = self.codes[:, k] ^ (1 + draw[1] % max(level.shape[1] - 1, 1))
        value = level.gather(1, code[:, None])[:, 0]
        moved = value - now
        accepted = moved * (2 * self.field[:, k] + moved * self.moments[k, k]) < temperature * threshold
        self.set(k, torch.where(accepted, code, self.codes[:, k]), torch.where(accepted, value, now))

    def refit(self, begin: int) -> None:
        """Least squares for the scales of the group that begins here, rounded to float16, where that helps."""
        inputs, bits = slice(begin, begin + self.group_size), self.alpha.shape[2]
        spins = (self.codes[:, inputs, None] >> torch.arange(bits, device=self.codes.device) & 1) * 2.0 - 1.0
        spins = spins.double()
        curvature = spins.mT @ (self.moments[inputs, inputs].double() @ spins)
        slope = (spins.mT @ self.field[:, inputs, None].double())[..., 0]
        ridge = 1e-6 * curvature.diagonal(dim1=1, dim2=2).sum(1)
        ridged = curvature + ridge[:, None, None] * torch.eye(bits, dtype=torch.float64, device=curvature.device)
        group = begin // self.group_size
        old = self.alpha[:, group].double()
        best = old - torch.linalg.solve(ridged, slope)
        new = best.float().clamp(-65504, 65504).half().double()
        step = new - old
        rise = 2 * (step * slope).sum(1) + torch.einsum("nb,nbc,nc->n", step, curvature, step)
        step = torch.where((rise < 0)[:, None], step, 0.0)
        self.alpha[:, group] += step.float()
        change = (spins @ step[..., None])[..., 0].float()
        self.value[:, inputs] += change
        self.field += change @ self.moments[inputs]


def ising_descend(
    weight: Tensor,
    moments: Tensor,
    codes: Tensor,
    alpha: Tensor,
    group_size: int,
    temperatures: list[float],
    spins: bool,
    scales: bool,
    seed: int,
) -> tuple[Tensor, Tensor]:
    _check_diagonal("moments", moments)
    if bool((codes >> alpha.shape[2]).any()):
        raise ValueError(f"codes must be below 2^{alpha.shape[2]}, got {int(codes.max())}")
    state = _State(weight, moments, codes, alpha, group_size)
    k, energy = weight.shape[1], state.energy().clamp_min(0)
    for sweep, heat in enumerate(temperatures):
        for begin in range(0, k, group_size):
            for i in range(begin, min(begin + group_size, k) if spins else begin):
                if heat > 0:
                    state.anneal(i, heat * energy / k, seed, sweep)
                else:
                    state.descend(i)
            if scales:
                state.refit(begin)
    return state.codes.to(torch.uint8), state.alpha.half()
