"""How many times as fast as something else a call is, on this machine, now: both take turns, and the median of the
round-by-round ratios is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

MIN_ROUND_S = 1e-3
MAX_TOTAL_S = 0.5
ROUNDS = 9


def _time(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def gain(ours: Callable[[], object], other: Callable[[], object]) -> float:
    """time(other) / time(ours). Slow calls get fewer rounds: about MAX_TOTAL_S are spent, one round at least."""
    repeats = []
    for run in (ours, other):
        run()
        repeats.append(max(1, int(MIN_ROUND_S / max(_time(run, 1), 1e-7))))
    ratios: list[float] = []
    start = time.perf_counter()
    while len(ratios) < ROUNDS and (not ratios or time.perf_counter() - start < MAX_TOTAL_S):
        ours_s = _time(ours, repeats[0])
        ratios.append(_time(other, repeats[1]) / max(ours_s, 1e-9))
    return statistics.median(ratios)
