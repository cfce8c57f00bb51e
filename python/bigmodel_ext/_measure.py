"""How many times as fast as something else a call is, on this machine, now.

All take turns, and the median of the round-by-round ratios counts: a shared machine drifts by tens of percent within
seconds, and neighbours in time drift together. Short rounds have the least noise (identical layers: 1 %).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
Clock = Callable[[], float]

ROUND_S = 1e-4  # a quick call is repeated within its turn until it fills this, so the clock's resolution is no matter
LEAST_S, MOST_S = 0.01, 0.06  # spent on a comparison that is clear at once, and on one that stays unclear
LEAST_ROUNDS = 5
NOT_SLOWER = 0.99  # from this gain on a call counts as no slower: less of a difference is noise


def own_clock() -> Clock:
    """For work on the CPU: on one thread that thread's own time, which is the time that passes less what other
    processes take of it; on several, the time that passes."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _time(run: Call, repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def interleave(calls: Sequence[Call], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, one after another: A B C A B C ..."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(times, calls, strict=True):
            own.append(_time(call, 1, time.perf_counter))
    return times


def median_ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds of how many times as long `other` took."""
    return statistics.median(a / max(b, 1e-9) for a, b in zip(other, ours, strict=True))


def clear(ratios: Sequence[float]) -> bool:
    """Whether more rounds would hardly change which side of NOT_SLOWER the median is on: the sign test's 99 % interval
    of the median lies on one side; or, of few, all lie far out on one side."""
    ordered, n = sorted(ratios), len(ratios)
    if n < LEAST_ROUNDS + 3:
        return ordered[0] > 1.25 or ordered[-1] < 0.8
    cut = int(n / 2 - 1.3 * math.sqrt(n))
    return ordered[cut] > NOT_SLOWER or ordered[-1 - cut] < NOT_SLOWER


def _enough(ratios: Sequence[Sequence[float]], spent: float, round_s: float) -> bool:
    rounds = len(ratios[0])
    if spent + round_s <= (LEAST_S if rounds >= LEAST_ROUNDS else MOST_S):
        return False
    return all(map(clear, ratios)) or (rounds >= 3 and spent > MOST_S)


def gains(dense: Call, *others: Call, clock: Clock | None = None) -> list[float]:
    """time(dense) / time(other) of each. Rounds are added until all are clear, within a few hundredths of a second;
    calls so slow that a round takes longer get one to three. clock: own_clock() unless told."""
    clock = clock or own_clock()
    calls = (dense, *others)
    for call in calls:
        call()
    first = [_time(call, 1, clock) for call in calls]
    repeats = [max(1, int(ROUND_S / max(seconds, 1e-7))) for seconds in first]
    ratios = [[first[0] / max(seconds, 1e-9)] for seconds in first[1:]]  # a list of rounds for each of the others
    start = clock()
    while not _enough(ratios, clock() - start, sum(first)):
        order = range(len(calls)) if len(ratios[0]) % 2 else reversed(range(len(calls)))  # A B B A ...
        row = {i: _time(calls[i], repeats[i], clock) for i in order}
        for i, own in enumerate(ratios, 1):
            own.append(row[0] / max(row[i], 1e-9))
    return [statistics.median(own) for own in ratios]
