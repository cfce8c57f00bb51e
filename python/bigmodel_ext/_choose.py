"""Never slower: which of a layer's candidates takes its place, if any."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from torch import nn

from bigmodel_ext import _gains
from bigmodel_ext._measure import NOT_SLOWER
from bigmodel_ext._surgery import nbytes

AS_FAST = 1.05  # speeds within this factor count as equal, and size decides: less is noise


def as_fast_as_best(gains: Sequence[float], factor: float = AS_FAST) -> list[int]:
    """The indices of the largest gain and of those that count as equal to it."""
    return [i for i, gain in enumerate(gains) if gain * factor >= max(gains)]


def told(gains: Mapping[int, float]) -> str:
    """{1: 0.8, 128: 2.0} -> "0.80x at 1 row, 2.00x at 128 rows"."""
    return ", ".join(f"{gain:.2f}x at {rows} row{'s' if rows != 1 else ''}" for rows, gain in gains.items())


def _average(gains: Sequence[float]) -> float:
    return statistics.geometric_mean(gains) if all(0.0 < gain < math.inf for gain in gains) else 0.0


def not_slower(layer: nn.Module, candidates: Sequence[nn.Module], rows: Sequence[int]) -> nn.Module | str:
    """Of the candidates that are nowhere slower than the layer, the fastest on (geometric) average over `rows`, or the
    smallest of several as fast; or why none may take the layer's place."""
    by_rows = [_gains.over_dense(candidates, m, layer, lambda: layer) for m in rows]
    gains = [dict(zip(rows, own, strict=True)) for own in zip(*by_rows, strict=True)]
    average = [_average([*own.values()]) for own in gains]
    fit = [i for i, own in enumerate(gains) if all(gain >= NOT_SLOWER for gain in own.values())]
    if not fit:
        best = max(range(len(candidates)), key=average.__getitem__)
        return f"kept dense: as {type(candidates[best]).__name__} its speed would be {told(gains[best])}"
    fastest = as_fast_as_best([average[i] for i in fit])
    return min((candidates[fit[i]] for i in fastest), key=nbytes)
