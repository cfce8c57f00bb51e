"""Side-by-side timing: candidates take turns in one process, and what is reported is their ratio round by round.

A shared machine drifts by tens of percent within seconds, so absolute times mislead while ratios of neighbouring calls
hold. Each bench_<op>.py yields cases; the harness verifies outputs first, times, prints a table and writes one CSV per
machine with what is needed to judge a row: commit, CPU, instruction set, threads, versions.
"""

from __future__ import annotations

import csv
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from bigmodel_ext import _native

RESULTS = Path(__file__).parent / "results"
MIN_ROUND_S = 2e-3  # a candidate is repeated within a round until it fills this, so the clock's resolution is no matter


@dataclass(frozen=True)
class Case:
    """One row: candidates by name, the first being ours. `verify` raises if ours is wrong."""

    op: str
    shape: str
    candidates: dict[str, Callable[[], object]]
    verify: Callable[[], None]
    operations: float = 0.0  # multiply and add count as two; 0 if bandwidth is what matters
    bytes: float = 0.0
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    median: float
    p20: float
    p80: float


def _repeats(run: Callable[[], object]) -> int:
    run()
    start = time.perf_counter()
    run()
    return max(1, int(MIN_ROUND_S / max(time.perf_counter() - start, 1e-7)))


def _time(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def interleave(candidates: dict[str, Callable[[], object]], rounds: int = 21) -> dict[str, list[float]]:
    """Seconds per call of each candidate in each round, A B C A B C ..."""
    repeats = {name: _repeats(run) for name, run in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()  # as timeit does: a collection in one candidate's turn is not that candidate's
    try:
        for _ in range(rounds):
            for name, run in candidates.items():
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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
        return f"{fields['model name']} family {fields['cpu family']} model {fields['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _git(*args: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True).stdout.strip()


def _commit() -> str:
    """The commit that is measured; "-dirty" if code, not just earlier results, differs from it."""
    changed = _git("status", "--porcelain", "--", ":/", ":!/bench/results", ":!/README.md")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def machine() -> dict[str, object]:
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "isa": _native.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def run(cases: Iterable[Case], name: str, rounds: int = 21) -> list[dict[str, object]]:
    """Verify, time and print every case; write bench/results/<name>.csv and return its rows."""
    rows: list[dict[str, object]] = []
    host = machine()
    print(f"{host['cpu']} · {host['isa']} · {host['threads']} thread(s) · torch {host['torch']}")
    for case in cases:
        case.verify()
        times = interleave(case.candidates, rounds)
        ours_name = next(iter(case.candidates))
        ours = times[ours_name]
        us = statistics.median(ours) * 1e6
        for peer in list(case.candidates)[1:]:
            r = ratio(times[peer], ours)
            row = {
                **host, "op": case.op, "shape": case.shape, "ours": ours_name, "peer": peer,
                "ours_us": round(us, 2), "peer_us": round(statistics.median(times[peer]) * 1e6, 2),
                "speedup": round(r.median, 3), "p20": round(r.p20, 3), "p80": round(r.p80, 3),
                "gops": round(case.operations / us / 1e3, 1), "gbps": round(case.bytes / us / 1e3, 2),
                **case.extra,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{case.op:20s} {case.shape:32s} {row['ours_us']:>10} us  {r.median:7.2f}x {peer}"
                f" [{r.p20:.2f}, {r.p80:.2f}]  {row['gops']} GOPS  {row['gbps']} GB/s",
                flush=True,
            )
    if rows:
        RESULTS.mkdir(exist_ok=True)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return rows
