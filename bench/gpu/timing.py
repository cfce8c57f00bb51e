"""Times on the device of calls that take turns: in CUDA graphs, so that Python's own time is not in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

ROUNDS, LEAST_ROUND_S = 9, 2e-3
COLD_BYTES = 128 << 20  # weights that take turns, so that they come from memory: more than twice an H100's L2 cache

Call = Callable[[], object]


def copies(nbytes: int) -> int:
    """Of a weight, so that together they do not stay in a cache; few for large ones."""
    return max(1, min(32, COLD_BYTES // max(1, nbytes)))


def graph_of(calls: list[Call]) -> Call:
    """Replays all calls; where they can't be captured, makes them."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except Exception:  # a peer that synchronises
        torch.cuda.synchronize()
        return lambda: [call() for call in calls]
    return graph.replay


def _seconds(call: Call, repeats: int) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def take_turns(candidates: dict[str, list[Call]]) -> dict[str, list[float]]:
    """Seconds a call, by candidate and round. A candidate is a list of calls of the same work on other data."""
    replay = {name: graph_of(calls) for name, calls in candidates.items()}
    repeats = {name: max(1, int(LEAST_ROUND_S / max(_seconds(call, 3), 1e-6))) for name, call in replay.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, call in replay.items():
            times[name].append(_seconds(call, repeats[name]) / len(candidates[name]))
    return times


def compare(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each peer of "ours": both medians in microseconds, and the ratio in a round (median, p20, p80)."""
    rows = []
    for peer in times:
        if peer == "ours":
            continue
        ratios = sorted(theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True))
        rows.append({
            "peer": peer, "ours_us": round(statistics.median(times["ours"]) * 1e6, 2),
            "peer_us": round(statistics.median(times[peer]) * 1e6, 2), "speedup": round(statistics.median(ratios), 3),
            "p20": round(ratios[len(ratios) // 5], 3), "p80": round(ratios[-1 - len(ratios) // 5], 3),
        })  # fmt: skip
    return rows
