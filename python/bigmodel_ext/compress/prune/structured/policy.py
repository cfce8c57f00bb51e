"""How many units each group loses: by a ratio, or where they cost least until the model is small enough."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bigmodel_ext.compress.prune.structured.units import Group

_STEPS = 128  # a group of more units is thinned in steps of several


@dataclass(frozen=True)
class Curve:
    """The units of a group in the order in which they are taken out, what each costs then, how many units the group
    had before any was pruned, and how many it may lose at most."""

    group: Group
    order: Sequence[int]
    costs: Sequence[float]
    initial: int
    round_to: int
    max_ratio: float

    def counts(self) -> list[int]:
        """The numbers of units that may be taken out, ascending from 0."""
        n, each = self.group.size, self.group.features
        most = min(n - 1, int(self.max_ratio * self.initial + 1e-9) - (self.initial - n), len(self.order))
        allowed = [r for r in range(1, most + 1) if r % self.group.blocks == 0 and (n - r) * each % self.round_to == 0]
        return [0, *allowed]

    def by_ratio(self, ratio: float) -> int:
        """The allowed number nearest to ``ratio`` of the initial units, those already gone counted."""
        wanted = ratio * self.initial - (self.initial - self.group.size)
        return min(self.counts(), key=lambda r: (abs(r - wanted), r))


class Cost:
    """Multiply-accumulates of the model's layers, as functions of what is taken out of each group."""

    def __init__(self, model: nn.Module, calls: Mapping[str, int]) -> None:
        self._shapes = {fqn: list(model.get_submodule(fqn).get_parameter("weight").shape) for fqn in calls}
        self._calls = calls
        self._less = {fqn: [0, 0] for fqn in calls}

    def of_layer(self, fqn: str) -> int:
        shape, less = self._shapes[fqn], self._less[fqn]
        product = self._calls[fqn] * (shape[0] - less[0]) * (shape[1] - less[1])
        for size in shape[2:]:
            product *= size
        return product

    def total(self) -> int:
        return sum(self.of_layer(fqn) for fqn in self._calls)

    def take(self, group: Group, units: int) -> int:
        """Take out (or, negative, put back) units; returns by how much the total falls."""
        weights = [s for s in group.slices if s.tensor == "weight" and s.fqn in self._less]
        layers = {s.fqn for s in weights}
        before = sum(self.of_layer(fqn) for fqn in layers)
        for s in weights:
            self._less[s.fqn][s.dim] += units * len(s.index[0])
        return before - sum(self.of_layer(fqn) for fqn in layers)


def macs(model: nn.Module, calls: Mapping[str, int]) -> int:
    """Multiply-accumulates of the layers, each weight applied `calls` times: sum of calls * numel."""
    return Cost(model, calls).total()


def local(curves: Iterable[Curve], ratio: float) -> dict[str, int]:
    return {curve.group.name: curve.by_ratio(ratio) for curve in curves}


def ranked(curves: Sequence[Curve], ratio: float) -> dict[str, int]:
    """Where units cost least, until ``ratio`` of all outputs that the groups had are gone."""
    features = {c.group.name: c.group.features for c in curves}
    budget = sum((ratio * c.initial - (c.initial - c.group.size)) * features[c.group.name] for c in curves)
    return _greedy(curves, lambda group, units: units * features[group.name], lambda gone: gone >= budget - 1e-9)


def to_macs(curves: Sequence[Curve], cost: Cost, target: float, by_cost: bool) -> dict[str, int]:
    """Until the layers' multiply-accumulates are at most `target`: where units cost least for each multiply-accumulate
    they save, or (not by_cost) the least equal ratio of all groups that does it.

    Raises:
        ValueError: they are more with every unit gone that may go.
    """
    least = {c.group.name: c.counts()[-1] for c in curves}
    if _after(curves, cost, least) > target:
        raise ValueError(
            f"{_after(curves, cost, least)} multiply-accumulates are left when everything is pruned that may be, "
            f"target_macs asks for {int(target)}"
        )
    if by_cost:
        start = cost.total()
        return _greedy(curves, cost.take, lambda gone: start - gone <= target)
    ratios = sorted({1.0 - (c.group.size - r) / c.initial for c in curves for r in c.counts()})
    first = bisect.bisect_left(ratios, True, key=lambda ratio: _after(curves, cost, local(curves, ratio)) <= target)
    return local(curves, ratios[min(first, len(ratios) - 1)])


def _after(curves: Sequence[Curve], cost: Cost, counts: Mapping[str, int]) -> int:
    for curve in curves:
        cost.take(curve.group, counts[curve.group.name])
    left = cost.total()
    for curve in curves:
        cost.take(curve.group, -counts[curve.group.name])
    return left


def _greedy(
    curves: Sequence[Curve], take: Callable[[Group, int], float], enough: Callable[[float], bool]
) -> dict[str, int]:
    """Step by step the group whose next units cost least for what they save (`take`), until enough is saved."""
    counts = {c.group.name: c.counts() for c in curves}
    counts = {name: allowed[:: max(1, len(allowed) // _STEPS)] for name, allowed in counts.items()}
    at, gone = dict.fromkeys(counts, 0), 0.0
    while not enough(gone):
        best: tuple[float, Curve] | None = None
        for curve in curves:
            name = curve.group.name
            if at[name] + 1 == len(counts[name]):
                continue
            first, last = counts[name][at[name]], counts[name][at[name] + 1]
            saved = take(curve.group, last - first)
            take(curve.group, first - last)
            price = sum(curve.costs[first:last]) / max(saved, 1e-9)
            if best is None or price < best[0]:
                best = price, curve
        if best is None:
            break
        name = best[1].group.name
        at[name] += 1
        gone += take(best[1].group, counts[name][at[name]] - counts[name][at[name] - 1])
    return {name: counts[name][i] for name, i in at.items()}
