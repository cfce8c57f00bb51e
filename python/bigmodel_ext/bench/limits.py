"""The machine's limits, measured in the same run as what is held against them: multiply-adds in registers, reading and
copying memory of a given size. Each is the best of many short windows, because a limit is what nothing can beat."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bigmodel_ext import _native
from bigmodel_ext.bench import host

WINDOW_S = 2e-3
WINDOWS = 40
UNIT = 1 << 17  # sizes of memory are rounded up to powers of two of at least this
BEYOND_CACHES = 4 * host.cache_bytes()


@dataclass(frozen=True)
class Limit:
    """The least time a call can take, and what says so. For the roofline: the arithmetic's peak in operations and what
    memory beyond the caches delivers in bytes per second."""

    name: str
    seconds: float
    peak: float = 0.0
    memory: float = 0.0


def _best(run: Callable[[], object], repeats: int) -> float:
    """Seconds per call in the fastest window."""
    run()
    best = math.inf
    for _ in range(WINDOWS):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        best = min(best, time.perf_counter() - start)
    return best / repeats


def _repeats(run: Callable[[], object]) -> int:
    run()
    start = time.perf_counter()
    run()
    return max(1, int(WINDOW_S / max(time.perf_counter() - start, 1e-7)))


@functools.cache
def _peak(kind: str, isa: str, threads: int) -> float:
    kernel = {"int8": _native.peak_int8, "fp32": _native.peak_fp32}[kind]
    iterations = 20_000
    return float(kernel(iterations)) / _best(lambda: kernel(iterations), 1)


def peak(kind: str) -> float | None:
    """Operations per second of "int8" or "fp32" arithmetic on torch's threads; None where no kernel shows it."""
    isa = _native.active_isa()
    return None if isa == "scalar" else _peak(kind, isa, torch.get_num_threads())


@functools.cache
def _read(size: int, isa: str, threads: int) -> float:
    data = torch.ones(size, dtype=torch.uint8)
    run = functools.partial(_native.peak_read, data)
    return float(run()) / _best(run, _repeats(run))


def _size(nbytes: float) -> int:
    wanted = min(max(nbytes, UNIT), BEYOND_CACHES)
    return 1 << math.ceil(math.log2(wanted))


def read_bandwidth(nbytes: float) -> float:
    """Bytes per second of reading this much again and again."""
    return _read(_size(nbytes), _native.active_isa(), torch.get_num_threads())


@functools.cache
def _copy(size: int, threads: int) -> float:
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    run = functools.partial(target.copy_, source)
    return 2.0 * size / _best(run, _repeats(run))


def copy_bandwidth(nbytes: float) -> float:
    """Bytes per second, read and written ones counted, of copying half of `nbytes` to another half."""
    return _copy(_size(nbytes / 2), torch.get_num_threads())


def linear(kind: str, operations: float, nbytes: float, cache: str = "warm") -> Limit | None:
    """Of a product: the longer of its arithmetic and of reading its weights from where they are."""
    top = peak(kind)
    if top is None:
        return None
    memory = read_bandwidth(BEYOND_CACHES)
    bandwidth = memory if cache == "cold" else read_bandwidth(nbytes)
    arithmetic, reading = operations / top, nbytes / bandwidth
    if arithmetic >= reading:
        return Limit(f"{kind} peak {top / 1e9:.0f} GOPS", arithmetic, top, memory)
    return Limit(f"reading {bandwidth / 1e9:.0f} GB/s", reading, top, memory)
