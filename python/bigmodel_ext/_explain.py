"""explain: what every linear and dropout layer of a model runs, why, how big it is and what it gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_ext import _dispatch, _measure, _native
from bigmodel_ext._fuse import why_not_dropout
from bigmodel_ext._reference import activate
from bigmodel_ext._surgery import Survey, device_of, nbytes
from bigmodel_ext.nn import (
    BlockSparseLinear,
    FusedDropout,
    Int8Linear,
    Int8SparseLinear,
    SemiSparseLinear,
    SparseLinear,
)
from bigmodel_ext.nn._linear import CompressedLinear

DROPOUT_FEATURES = 1024  # columns that a FusedDropout without a bias is timed with: it does not know its own


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


Call = tuple[str, tuple[Any, ...]]


def _call_of(layer: nn.Module, batch: int) -> tuple[Call, Callable[[], object], Callable[[], object]]:
    """The op and arguments of a converted layer, a call of it, and of what it stands for."""
    device = device_of(layer)
    if isinstance(layer, FusedDropout):
        features = DROPOUT_FEATURES if layer.bias is None else layer.bias.shape[0]
        x = torch.randn(batch, features, device=device, dtype=None if layer.bias is None else layer.bias.dtype)
        seed = torch.zeros((), dtype=torch.int64, device=device) if layer.p > 0 else None
        args = (x, layer.bias, None, seed, layer.p, layer.activation)
        fused = torch.ops.bigmodel_ext.fused_dropout.default
        return ("fused_dropout", args), lambda: fused(*args), lambda: _eager_dropout(x, layer)
    assert isinstance(layer, CompressedLinear)
    n, k, bias = layer.out_features, layer.in_features, layer.bias
    floats = (SparseLinear, BlockSparseLinear, SemiSparseLinear)
    dtype = layer.values.dtype if isinstance(layer, floats) else layer.float_dtype
    x, dense = torch.randn(batch, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    dense_bias = None if bias is None else bias.to(dtype)
    call: Call
    if isinstance(layer, SparseLinear):
        call = ("sparse_linear", (x, layer.values, layer.crow, layer.col, bias, n, layer.panel))
    elif isinstance(layer, BlockSparseLinear):
        call = ("block_sparse_linear", (x, layer.values, layer.crow, layer.col, bias, n))
    elif isinstance(layer, SemiSparseLinear):
        call = ("semi_sparse_linear", (x, layer.values, layer.index, bias, n))
    elif isinstance(layer, Int8SparseLinear):
        indices = (layer.values, layer.crow, layer.col)
        call = ("int8_sparse_linear", (x, *indices, layer.weight_scale, layer.row_sum, bias, layer.panel))
    else:
        assert isinstance(layer, Int8Linear)
        call = ("int8_linear", (x, layer.packed, layer.weight_scale, bias))
    return call, lambda: layer(x), lambda: F.linear(x, dense, dense_bias)


def _eager_dropout(x: Tensor, layer: FusedDropout) -> Tensor:
    return F.dropout(activate(x if layer.bias is None else x + layer.bias, layer.activation), layer.p)


_gains: dict[tuple[object, ...], float] = {}


def _gain(layer: nn.Module, call: Call, ours: Callable[[], object], other: Callable[[], object]) -> float | None:
    if device_of(layer).type == "meta":
        return None
    parts = [(*a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in call[1]]
    key = (call[0], *parts, torch.get_num_threads(), _native.active_isa())
    if key not in _gains:
        _gains[key] = _measure.gain(ours, other)
    return _gains[key]


def _converted(fqn: str, layer: nn.Module, batch: int) -> LayerReport:
    dense = nbytes(layer) if isinstance(layer, FusedDropout) else _dense_bytes(layer)
    kind = type(layer).__name__
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):  # a look must not change what training draws next
        call, ours, other = _call_of(layer, batch)
        try:
            choice = _dispatch.explain(call[0], *call[1])
            gain = _gain(layer, call, ours, other)
        except TypeError as error:  # a model cast to a dtype that the layer does not take
            return LayerReport(fqn, kind, None, None, f"can't run: {error}", nbytes(layer), dense, None)
    return LayerReport(fqn, kind, choice.kernel, choice.isa, choice.reason, nbytes(layer), dense, gain)


def _dense_bytes(linear: nn.Module) -> int:
    assert isinstance(linear, nn.Linear)
    return 4 * linear.out_features * (linear.in_features + (linear.bias is not None))


def _left(fqn: str, layer: nn.Module, reason: str | None) -> LayerReport:
    dense = _dense_bytes(layer) if isinstance(layer, nn.Linear) else 0
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
        if isinstance(module, (CompressedLinear, FusedDropout)):
            rows.append(_converted(place.fqn, module, batch))
        elif isinstance(module, nn.Linear):
            rows.append(_left(place.fqn, module, survey.why_not_linear(place)))
        elif isinstance(module, nn.Dropout):
            rows.append(_left(place.fqn, module, why_not_dropout(place)))
    falling = [f"{row.fqn} ({row.kernel}: {row.reason})" for row in rows if row.fallback]
    if strict and falling:
        raise RuntimeError(f"no kernel runs for {', '.join(falling)}")
    return Explanation(tuple(rows), batch, threads)
