"""Side-by-side timing: candidates take turns in one process, and what is reported is their ratio round by round.

A shared machine drifts by tens of percent within seconds, so absolute times mislead while ratios of neighbouring calls
hold. A suite yields cases; the harness verifies outputs first, times, prints a line and writes the row with what is
needed to judge it.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_ext.bench import host, results
from bigmodel_ext.bench.limits import Limit

MIN_ROUND_S = 2e-3  # a candidate is repeated within a round until it fills this, so the clock's resolution is no matter
LONG_CALL_S = 1.0  # a call of this length needs no untimed one before it
OUT = Path("bench-results")

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row per peer: candidates by name, the first being ours (`ours` names them where there are several). `verify`
    raises if ours is wrong."""

    op: str
    shape: str
    candidates: dict[str, Call]
    verify: Callable[[], None]
    operations: float = 0.0  # of the dense product, multiply and add count as two; 0 if bandwidth is what matters
    bytes: float = 0.0  # that a call must move
    real_operations: float = 0.0  # with stored weights only; 0: all of them
    limit: Limit | None = None  # the least time that the machine can need
    cache: str = "warm"  # or "cold"
    ours: tuple[str, ...] = ()
    dtypes: dict[str, str] = field(default_factory=dict)  # of candidates, where a row is to tell
    megabytes: dict[str, float] = field(default_factory=dict)
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    median: float
    p20: float
    p80: float


def rotating(calls: Sequence[Call]) -> Call:
    """Makes the next of `calls` each time: with weights of its own in each, none is found in a cache."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def _time(run: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _seconds(run: Call) -> float:
    """Of one call, roughly; the first may compile or allocate, but a very long one is known well enough from it."""
    first = _time(run, 1)
    return first if first > 3 * LONG_CALL_S else max(_time(run, 1), 1e-7)


def interleave(
    candidates: dict[str, Call], rounds: int = 21, budget_s: float | None = None, min_rounds: int = 3
) -> dict[str, list[float]]:
    """Seconds per call of each candidate in each round, A B C A B C ... With a budget the rounds end when it is spent,
    but not before `min_rounds`."""
    rough = {name: _seconds(run) for name, run in candidates.items()}
    repeats = {name: max(1, int(MIN_ROUND_S / seconds)) for name, seconds in rough.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    gc.disable()  # as timeit does: a collection in one candidate's turn is not that candidate's
    try:
        for done in range(rounds):
            if budget_s is not None and done >= min_rounds and time.perf_counter() - start > budget_s:
                break
            for name, run in candidates.items():
                if rough[name] < LONG_CALL_S:
                    run()  # untimed: the caches and the allocator as the candidate, not its predecessor, leaves them
                times[name].append(_time(run, repeats[name]))
    finally:
        gc.enable()
    return times


def ratio(other: list[float], ours: list[float]) -> Ratio:
    """How many times as long `other` takes, round by round."""
    ratios = sorted(a / b for a, b in zip(other, ours, strict=True))
    cuts = statistics.quantiles(ratios, n=5, method="inclusive") if len(ratios) > 1 else ratios * 4
    return Ratio(statistics.median(ratios), cuts[0], cuts[-1])


def _dtype(case: Case, name: str) -> str:
    """What a candidate computes in: as the case says, or as its name does; "" if neither tells."""
    told = {"bf16": "bf16", "bfloat16": "bf16", "fp32": "fp32", "float32": "fp32"}
    return case.dtypes.get(name) or next((dtype for word, dtype in told.items() if word in name), "")


def _shared(case: Case, ours: str, us: float) -> dict[str, object]:
    """What the rows of one of ours have in common."""
    real = case.real_operations or case.operations
    found: dict[str, object] = {
        "load": round(host.load(), 2), "op": case.op, "shape": case.shape, "cache": case.cache, "ours": ours,
        "dtype": _dtype(case, ours), "ours_us": round(us, 2), "ours_mb": case.megabytes.get(ours, ""),
        "gops": round(case.operations / us / 1e3, 2), "real_gops": round(real / us / 1e3, 2),
        "gbps": round(case.bytes / us / 1e3, 2), "bytes": int(case.bytes), **case.extra,
    }  # fmt: skip
    if case.limit is not None:
        limit_us = case.limit.seconds * 1e6
        found |= {
            "limit": case.limit.name, "limit_us": round(limit_us, 2), "limit_percent": round(100 * limit_us / us, 1),
            "peak_gops": round(case.limit.peak / 1e9, 1), "memory_gbps": round(case.limit.memory / 1e9, 1),
        }  # fmt: skip
    return found


def _rows(case: Case, times: dict[str, list[float]], facts: dict[str, object]) -> list[dict[str, object]]:
    ours_names = case.ours or (next(iter(case.candidates)),)
    rows = []
    for ours in ours_names:
        shared = _shared(case, ours, statistics.median(times[ours]) * 1e6)
        for peer in [name for name in case.candidates if name not in ours_names]:
            r = ratio(times[peer], times[ours])
            rows.append({
                **facts, **shared, "rounds": len(times[ours]), "peer": peer, "peer_dtype": _dtype(case, peer),
                "peer_us": round(statistics.median(times[peer]) * 1e6, 2), "peer_mb": case.megabytes.get(peer, ""),
                "speedup": round(r.median, 3), "p20": round(r.p20, 3), "p80": round(r.p80, 3),
            })  # fmt: skip
    return rows


def _show(rows: list[dict[str, object]]) -> None:
    before = None
    for row in rows:
        if row["ours"] != before:
            before = row["ours"]
            figures = [f"{row['ours_us']} us"]
            if row["gops"]:
                figures.append(f"{row['gops']} GOPS")
            if row["real_gops"] != row["gops"]:
                figures.append(f"{row['real_gops']} GOPS with stored weights")
            if row["gbps"]:
                figures.append(f"{row['gbps']} GB/s")
            if "limit" in row:
                figures.append(f"{row['limit_percent']} % of the limit ({row['limit']})")
            print(f"{row['op']} {row['shape']} {row['cache']} · {before}: {', '.join(figures)}")
        print(f"    {row['speedup']:>8.2f}x  [{row['p20']:.2f}, {row['p80']:.2f}]  {row['peer']}", flush=True)


def run(
    cases: Iterable[Case],
    name: str,
    rounds: int = 21,
    out: Path = OUT,
    budget_s: float | None = None,
    min_rounds: int = 3,
) -> list[dict[str, object]]:
    """Verify, time and print every case; rows go to <out>/<machine>/<name>.csv as they come, and are returned."""
    rows: list[dict[str, object]] = []
    facts = host.facts()
    path = results.folder(out) / f"{name}.csv"
    for case in cases:
        case.verify()
        done = _rows(case, interleave(case.candidates, rounds, budget_s, min_rounds), facts)
        if done:
            rows += done
            _show(done)
            results.update(path, done)
        del case  # its weights, before the next case makes its own
    return rows
