"""Which step each layer gets: least distortion of the whole for a number of bits.

At the rates meant here a weight costs about ``h - log2(step)`` bits and adds ``step^2 * s`` to the distortion, so one
Lagrange multiplier over all layers gives ``step = theta / sqrt(s)``, s the layer's sensitivity, and theta is found by
coding the model for a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigmodel_ext.compress.quantize._rounding import (
    MOST,
    Block,
    EntropyConstrained,
    Rule,
    Unbiased,
    noise,
    rounded,
)
from bigmodel_ext.formats import coded

_ROUNDS = 14
_TOLERANCE = 0.005  # of the bits: so far below the budget is near enough
_PRICE = 0.5  # of the exact price of a bit: most of what it saves, half the pull towards 0, which adds up over layers
_FINER = 8  # steps of rows that need more than 127 grid points grow by powers of 2^(1/8)


@dataclass
class Target:
    """A layer to round: blocks (one, or one for each group), gain (what its output's error counts), the rule."""

    fqn: str
    blocks: list[Block]
    gain: float
    unbiased: bool
    temperature: float
    seed: int
    counts: Tensor | None = None  # how often the symbols -127..127 came the last time

    @property
    def numel(self) -> int:
        return sum(block.weight.numel() for block in self.blocks)

    def sensitivity(self, block: Block) -> float:
        return self.gain * float(block.cost.double().mean())


@dataclass(frozen=True)
class Rounded:
    """A layer's weights on their grid: q int8 [N, K], step float32 [N]; bytes of their streams, entropy in bits of q
    (as ``formats.coded.entropy``), distortion ``trace((W - Q) H (W - Q)^T)``; floor: no finer step fits int8."""

    q: Tensor
    step: Tensor
    coded_bytes: int
    entropy: float
    distortion: float
    floor: bool


def _stored(tensor: Tensor) -> int:
    """Bytes in a file."""
    raw = tensor.numel() * tensor.element_size()
    return min(raw, coded.encode(tensor).numel()) if coded.can(tensor) else raw


def _steps(weight: Tensor, step: float) -> Tensor:
    """The step for each row: `step`, or the next one with which the row fits -127..127."""
    least = weight.abs().amax(1).double() / (MOST - 1)
    more = (least / step).clamp_min(1.0).log2().mul(_FINER).ceil().div(_FINER).exp2()
    return (step * more).float()


def _rule(target: Target, block: Block, part: int, step: float, rows: Tensor) -> Rule:
    n, k = block.weight.shape
    if target.unbiased:
        return Unbiased(noise(target.seed, f"{target.fqn}:{part}", (k, n))[:, rows])
    counts = target.counts
    if counts is None:
        counts = _symbol_counts((block.weight / step).round().clamp(-MOST, MOST))
    share = (counts + 0.5 / len(counts)) / (counts.sum() + 0.5)
    # The slope of distortion over bits where a step costs step^2 / 12: the same for every layer, weighed by its gain.
    price = _PRICE * step**2 / 6 * math.log(2) * float(block.cost.double().mean())
    drawn = noise(target.seed, f"{target.fqn}:{part}", (k, n))[:, rows] if target.temperature > 0 else None
    return EntropyConstrained(-share.log2(), price, target.temperature * price / math.log(2), drawn)


def _symbol_counts(q: Tensor) -> Tensor:
    return torch.bincount(q.flatten().long() + MOST, minlength=2 * MOST + 1).float()


def _fitted(target: Target, block: Block, part: int, step: float) -> tuple[Tensor, Tensor]:
    """(q, steps) of a block; the rows that reach the grid's ends are done again with larger steps."""
    steps = _steps(block.weight, step)
    every = torch.arange(len(steps))
    q = rounded(block, steps, _rule(target, block, part, step, every))
    for _ in range(4 * _FINER):
        rows = (q.abs() == MOST).any(1).nonzero().flatten()
        if not len(rows):
            break
        steps[rows] *= 2 ** (1 / _FINER)
        few = Block(block.weight[rows], block.moment, block.order, block.moves, block.cost)
        q[rows] = rounded(few, steps[rows], _rule(target, block, part, step, rows))
    return q, steps


def quantized(target: Target, theta: float) -> Rounded:
    parts, distortion, floor = [], 0.0, True
    for i, block in enumerate(target.blocks):
        step = theta / math.sqrt(target.sensitivity(block))
        q, steps = _fitted(target, block, i, step)
        parts.append((q, steps))
        distortion += block.distortion(q, steps)
        floor = floor and bool((steps > step).all())
    q, steps = (torch.cat(both) for both in zip(*parts, strict=True))
    target.counts = _symbol_counts(q)
    return Rounded(q, steps, _stored(q) + _stored(steps), coded.entropy(q), distortion, floor)


def _guess(targets: Sequence[Target], bits_per_weight: float) -> float:
    """log2(theta) with which Gaussian weights would have this entropy: ``log2(sigma / step) + log2(2 pi e) / 2``."""
    total = weighed = 0.0
    for target in targets:
        for block in target.blocks:
            spread = max(float(block.weight.double().std(unbiased=False)), 1e-30)
            weighed += block.weight.numel() * math.log2(spread * math.sqrt(target.sensitivity(block)))
            total += block.weight.numel()
    return weighed / total + 2.05 - bits_per_weight


def allocate(targets: Sequence[Target], bits_per_weight: float) -> dict[str, Rounded]:
    """Every layer rounded with the steps that take at most bits_per_weight in a file, averaged over all weights, and
    hardly less (unless int8 is not fine enough for so many).

    Raises:
        ValueError: not even tables and scales fit into so few bits.
    """
    numel = sum(target.numel for target in targets)
    wanted = bits_per_weight * numel
    x, best, last = _guess(targets, bits_per_weight), dict[str, Rounded](), (0.0, 0.0)
    most, least = 0.0, math.inf
    for i in range(_ROUNDS):
        made = {target.fqn: quantized(target, 2.0**x) for target in targets}
        bits = 8.0 * sum(layer.coded_bytes for layer in made.values())
        least = min(least, bits)
        if most < bits <= wanted:
            most, best = bits, made
        near = wanted * (1 - _TOLERANCE) <= bits <= wanted
        if near or (bits < wanted and all(layer.floor for layer in made.values())):
            break
        slope = -numel if not i or x == last[0] else (bits - last[1]) / (x - last[0])
        last = (x, bits)
        x -= max(-4.0, min(4.0, (bits - wanted * (1 - _TOLERANCE / 2)) / min(max(slope, -2.0 * numel), -0.1 * numel)))
    if not best:
        raise ValueError(
            f"bits_per_weight={bits_per_weight} can't be met: {least / numel:.3g} is the least of {_ROUNDS} trials, "
            "tables and scales included"
        )
    return best


def nearest(target: Target, entropy: float) -> float:
    """The distortion of rounding to the nearest multiple of one step, at the step where that has this entropy."""
    weight = torch.cat([block.weight for block in target.blocks])
    spread = max(float(weight.double().std(unbiased=False)), 1e-30)
    x = math.log2(spread) + 2.05 - entropy / weight.numel()
    for _ in range(5):
        steps = _steps(weight, 2.0**x)
        q = (weight / steps[:, None]).round_().clamp_(-MOST, MOST).to(torch.int8)
        excess = (coded.entropy(q) - entropy) / weight.numel()
        if abs(excess) < _TOLERANCE:
            break
        x += excess
    sizes = [len(block.weight) for block in target.blocks]
    parts = zip(target.blocks, q.split(sizes), steps.split(sizes), strict=True)
    return sum(block.distortion(own, step) for block, own, step in parts)
