"""explain: what every linear and dropout layer of a model runs, why, how big it is and what it gains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from bigmodel_ext import _dispatch, _gains
from bigmodel_ext._fuse import why_not_dropout
from bigmodel_ext._measure import NOT_SLOWER
from bigmodel_ext._probe import Recorder, probe_of
from bigmodel_ext._surgery import COMPRESSED, DENSE, KEPT, Survey, device_of, nbytes
from bigmodel_ext.nn import FusedDropout


@dataclass(frozen=True)
class LayerReport:
    """One layer. kernel and isa are None for a layer that was not converted; gain, at `batch` rows, where nothing could
    be timed. crossover: from how many rows on, up to `batch`, the layer is no slower than dense (of 1, 2, 4, ... and
    `batch`, which are timed); None: at `batch` it is slower. requested: quantize_ or sparsify_ was asked to convert it,
    or it is converted."""

    fqn: str
    layer: str
    kernel: str | None
    isa: str | None
    reason: str
    bytes: int
    dense_bytes: int
    gain: float | None = None
    crossover: int | None = None
    requested: bool = False

    @property
    def converted(self) -> bool:
        return self.kernel is not None

    @property
    def fallback(self) -> bool:
        return self.kernel is not None and self.kernel.startswith("reference/")

    @property
    def unmet(self) -> bool:
        """A kernel was requested and is not used."""
        return self.requested and (not self.converted or self.fallback)


@dataclass(frozen=True)
class Explanation:
    """`layers` in the model's order; str() is a table."""

    layers: tuple[LayerReport, ...]
    batch: int
    threads: int

    def __str__(self) -> str:
        header = ("layer", "type", "kernel", "isa", "bytes", "dense fp32", "gain", "from", "reason")
        rows = [header, *(_cells(row) for row in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        note = f"gain: time of the dense layer over this one's, {self.batch} rows, {self.threads} thread(s); "
        return "\n".join((*lines, note + "from: the rows from which on it is no slower"))


def _cells(row: LayerReport) -> tuple[str, ...]:
    gain = start = "-"
    if row.gain is not None:
        gain, start = f"{row.gain:.2f}x", "never" if row.crossover is None else str(row.crossover)
    return (
        row.fqn or "(model)", row.layer, row.kernel or "-", row.isa or "-", f"{row.bytes:,}", f"{row.dense_bytes:,}",
        gain, start, row.reason,
    )  # fmt: skip


def _by_rows(layer: nn.Module, batch: int) -> dict[int, float]:
    """The gain at 1, 2, 4, ... and `batch` rows."""
    dense = cache(lambda: probe_of(layer).dense(layer))
    rows = [*(1 << i for i in range((batch - 1).bit_length())), batch]
    return {m: _gains.over_dense([layer], m, layer, dense)[0] for m in rows}


def _crossover(gains: dict[int, float]) -> int | None:
    start = None
    for rows, gain in sorted(gains.items(), reverse=True):
        if not gain >= NOT_SLOWER:
            break
        start = rows
    return start


def _converted(fqn: str, layer: nn.Module, batch: int) -> LayerReport:
    probe, kind = probe_of(layer), type(layer).__name__
    dense = 4 * probe.numel(layer)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), Recorder() as recorder:
            probe.run(layer)(probe.inputs(layer, 1))
    except TypeError as error:  # a model cast to a dtype that the layer does not take
        return LayerReport(fqn, kind, None, None, f"can't run: {error}", nbytes(layer), dense, requested=True)
    op, args = recorder.calls[0]
    choice = _dispatch.explain(op, *args)
    gains = {} if device_of(layer).type == "meta" else _by_rows(layer, batch)
    activation = getattr(layer, "activation", "none") if isinstance(layer, nn.Linear) else "none"
    reason = choice.reason if activation == "none" else f"{choice.reason}; computes {activation} too"
    if getattr(layer, "input_scale", None) is not None:
        reason += "; activations quantized with one scale from calibration"
    return LayerReport(
        fqn, kind, choice.kernel, choice.isa, reason, nbytes(layer), dense,
        gain=gains.get(batch), crossover=_crossover(gains), requested=True,
    )  # fmt: skip


def _left(fqn: str, layer: nn.Module, refusal: str | None) -> LayerReport:
    dense = 4 * probe_of(layer).numel(layer) if isinstance(layer, DENSE) else 0
    asked = getattr(layer, KEPT, None)
    reason = refusal or asked or "not converted"
    return LayerReport(fqn, type(layer).__name__, None, None, reason, nbytes(layer), dense, requested=asked is not None)


def explain(model: nn.Module, strict: bool = False, batch: int = 128) -> Explanation:
    """What each linear and dropout layer runs: kernel and instruction set, why that one, its bytes and those of the
    dense float32 layer, the measured gain over the dense layer (in the layer's dtype; for a FusedDropout: over torch's
    separate ops) at `batch` rows with the current number of threads, and from how many rows on there is one. Layers
    that were not converted are listed with the reason; where it was their speed, with the figures. Timing takes up to
    about a second per distinct shape; figures are remembered (see ``BIGMODEL_CACHE``).

    Args:
        model: any module; it is not changed.
        strict: raise if a requested kernel is not used: a layer that quantize_ or sparsify_ was asked to convert was
            left dense, for whatever reason, or a converted layer would run the plain PyTorch reference.
        batch: rows of activations, at least 1.

    Raises:
        ValueError: batch is below 1.
        RuntimeError: strict, and a requested kernel is not used; the message names the layers and the reasons.
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
    _gains.save()
    unmet = [f"{row.fqn} ({f'{row.kernel}: ' if row.kernel else ''}{row.reason})" for row in rows if row.unmet]
    if strict and unmet:
        raise RuntimeError(f"the requested kernel is not used for {', '.join(unmet)}")
    return Explanation(tuple(rows), batch, threads)
