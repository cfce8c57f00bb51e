"""explain: what every linear and dropout layer of a model runs, why, how big it is and what it gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext import _dispatch, _measure, _native
from bigmodel_ext._fuse import why_not_dropout
from bigmodel_ext._probe import Recorder, probe_of
from bigmodel_ext._surgery import COMPRESSED, DENSE, Survey, nbytes
from bigmodel_ext.nn import FusedDropout


@dataclass(frozen=True)
class LayerReport:
    """One layer. kernel and isa are None for a layer that was not converted, and gain where nothing could be timed."""

    fqn: str
    layer: str
    kernel: str | None
    isa: str | None
    reason: str
    bytes: int
    dense_bytes: int
    gain: float | None

    @property
    def converted(self) -> bool:
        return self.kernel is not None

    @property
    def fallback(self) -> bool:
        return self.kernel is not None and self.kernel.startswith("reference/")


@dataclass(frozen=True)
class Explanation:
    """`layers` in the model's order; str() is a table."""

    layers: tuple[LayerReport, ...]
    batch: int
    threads: int

    def __str__(self) -> str:
        header = ("layer", "type", "kernel", "isa", "bytes", "dense fp32", "gain", "reason")
        rows = [header, *(_cells(row) for row in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        note = f"gain: time of the dense layer over this one's, {self.batch} rows, {self.threads} thread(s)"
        return "\n".join((*lines, note))


def _cells(row: LayerReport) -> tuple[str, ...]:
    gain = "-" if row.gain is None else f"{row.gain:.2f}x"
    return (
        row.fqn or "(model)", row.layer, row.kernel or "-", row.isa or "-", f"{row.bytes:,}", f"{row.dense_bytes:,}",
        gain, row.reason,
    )  # fmt: skip


_gains: dict[tuple[object, ...], float] = {}


def _gain(args: tuple[Any, ...], op: str, ours: Callable[[], object], dense: Callable[[], object]) -> float | None:
    if any(isinstance(a, Tensor) and a.is_meta for a in args):
        return None
    parts = [(*a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
    key = (op, *(tuple(a) if isinstance(a, list) else a for a in parts), torch.get_num_threads(), _native.active_isa())
    if key not in _gains:
        _gains[key] = _measure.gain(ours, dense)
    return _gains[key]


def _converted(fqn: str, layer: nn.Module, batch: int) -> LayerReport:
    probe, kind = probe_of(layer), type(layer).__name__
    dense = 4 * probe.numel(layer)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):  # a look must not change what training draws next
        x, ours, other = probe.inputs(layer, batch), probe.run(layer), probe.dense(layer)
        try:
            with Recorder() as recorder:
                ours(x)
        except TypeError as error:  # a model cast to a dtype that the layer does not take
            return LayerReport(fqn, kind, None, None, f"can't run: {error}", nbytes(layer), dense, None)
        op, args = recorder.calls[0]
        choice = _dispatch.explain(op, *args)
        gain = _gain(args, op, lambda: ours(x), lambda: other(x))
    return LayerReport(fqn, kind, choice.kernel, choice.isa, choice.reason, nbytes(layer), dense, gain)


def _left(fqn: str, layer: nn.Module, reason: str | None) -> LayerReport:
    dense = 4 * probe_of(layer).numel(layer) if isinstance(layer, DENSE) else 0
    return LayerReport(fqn, type(layer).__name__, None, None, reason or "not converted", nbytes(layer), dense, None)


def explain(model: nn.Module, strict: bool = False, batch: int = 128) -> Explanation:
    """What each linear and dropout layer runs: kernel and instruction set, why that one, its bytes and those of the
    dense float32 layer, and the measured gain over the dense layer (in the layer's dtype; for a FusedDropout: over
    torch's separate ops) at `batch` rows with the current number of threads. Layers that were not converted are listed
    with the reason. Timing takes up to about half a second per distinct shape.

    Args:
        model: any module; it is not changed.
        strict: raise if a converted layer would run the plain PyTorch reference.
        batch: rows of activations, at least 1.

    Raises:
        ValueError: batch is below 1.
        RuntimeError: strict, and a layer falls back; the message names it and the reason.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    survey, threads = Survey(model), torch.get_num_threads()
    rows = []
    for place in survey.places.values():
        module = place.module
        if isinstance(module, (*COMPRESSED, FusedDropout)):
            rows.append(_converted(place.fqn, module, batch))
        elif isinstance(module, DENSE):
            rows.append(_left(place.fqn, module, survey.why_not(place)))
        elif isinstance(module, nn.Dropout):
            rows.append(_left(place.fqn, module, why_not_dropout(place)))
    falling = [f"{row.fqn} ({row.kernel}: {row.reason})" for row in rows if row.fallback]
    if strict and falling:
        raise RuntimeError(f"no kernel runs for {', '.join(falling)}")
    return Explanation(tuple(rows), batch, threads)
