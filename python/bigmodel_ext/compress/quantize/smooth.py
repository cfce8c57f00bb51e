"""SmoothQuant (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models"): a few channels of a layer's input are often far larger than the rest and take all of int8's range. Divided by

    s_j = max|X_j|^alpha / max_n|W_nj|^(1 - alpha)

they fit, and the weight's columns, multiplied by s_j, take the difficulty over. The division is folded into the layer
before, where that changes nothing else (see `_folds`), so it costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.compress.calibrate import ForwardLoop, observe, rows_of
from bigmodel_ext.compress.quantize import dynamic, static
from bigmodel_ext.compress.quantize._folds import Fold, apply_fold, find_folds
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.compress.quantize._same import Call, first_call, outputs_in, require_same
from bigmodel_ext.compress.quantize._simulated import rounded_by, rounded_rows
from bigmodel_ext.compress.quantize.static import Int8StaticActivationInt8WeightConfig
from bigmodel_ext.convert import Filter, convertible

ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SAMPLE_ROWS = 512  # of a layer's inputs, on which alphas are compared
Apply = Callable[[nn.Module, Any, "ForwardLoop | None", "Filter | None"], Report]
SMALLEST = 1e-5  # of a channel's magnitude, which counts as this much


@dataclass(frozen=True)
class SmoothQuantConfig(Int8StaticActivationInt8WeightConfig):
    """Smooth, then quantize as Int8DynamicActivationInt8WeightConfig does or, if `static`, as
    Int8StaticActivationInt8WeightConfig. Needs a forward_loop.

    alpha: in [0, 1]: how much of the difficulty moves from activations into weights; None: for each place the one of
    ALPHAS (or no smoothing) with the least output error on the calibration data.
    folds: places known to be right that a trace can't find: (producer, (consumers...)) by name. The producer's outputs
    must be proportional to its weight and bias, and go to these linear layers only.
    """

    alpha: float | None = None
    static: bool = False
    folds: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if self.alpha is not None and not number:
            raise TypeError(f"alpha must be a number in [0, 1] or None, got {self.alpha!r}")
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")


@dataclass
class _Inputs:
    """What a layer's input looks like: the largest magnitude of each channel, and some rows."""

    largest: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        largest = x.abs().amax(0) if len(x) else x.new_zeros(x.shape[1])
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        missing = SAMPLE_ROWS - sum(map(len, self.rows))
        if missing > 0:
            self.rows.append(x[:: -(-len(x) // missing)].clone() if len(x) else x)


def factors(largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """s [K] for inputs with these largest magnitudes [K] and the weights [N,K] that they enter; 1 for a channel that is
    always zero, on either side."""
    of_weights = torch.stack([w.detach().float().abs().amax(0) for w in weights]).amax(0)
    s = largest.clamp(min=SMALLEST) ** alpha / of_weights.clamp(min=SMALLEST) ** (1 - alpha)
    return torch.where((largest > 0) & (of_weights > 0), s.clamp(min=SMALLEST), 1.0)


def _output_error(rows: Tensor, weights: list[Tensor], s: Tensor, largest: Tensor, config: SmoothQuantConfig) -> float:
    """The squared error of the layers' outputs on these rows, smoothed by s and rounded as the int8 layers will."""
    smooth = rows / s
    scale = (largest / s).amax() / 127
    x = rounded_by(smooth, scale) if config.static else rounded_rows(smooth)
    products = ((w.detach().float(), rounded_rows(w.detach().float() * s)) for w in weights)
    return sum(float((F.linear(x, rounded) - F.linear(rows, w)).square().sum()) for w, rounded in products)


def _chosen(inputs: _Inputs, weights: list[Tensor], config: SmoothQuantConfig) -> tuple[float | None, Tensor]:
    """(alpha, s); no alpha: not smoothing is best."""
    assert inputs.largest is not None
    if config.alpha is not None:
        return config.alpha, factors(inputs.largest, weights, config.alpha)
    tried: list[tuple[float | None, Tensor]] = [(None, torch.ones_like(inputs.largest))]
    tried += [(alpha, factors(inputs.largest, weights, alpha)) for alpha in ALPHAS]
    rows = torch.cat(inputs.rows)
    errors = [_output_error(rows, weights, s, inputs.largest, config) for _, s in tried]
    return tried[errors.index(min(errors))]


def _declared(model: nn.Module, config: SmoothQuantConfig, layers: Mapping[str, nn.Module]) -> list[Fold]:
    names = dict(model.named_modules())
    for producer, consumers in config.folds:
        for name in (producer, *consumers):
            if name not in names:
                raise ValueError(f"folds: the model has no module {name!r}")
        if not isinstance(getattr(names[producer], "weight", None), Tensor):
            raise ValueError(f"folds: {producer!r} has no weight to take the factors")
        missing = [name for name in consumers if name not in layers]
        if missing or not consumers:
            raise ValueError(f"folds: {producer!r} must go to linear layers that can be quantized, got {consumers}")
        width = names[producer].weight.shape[0]
        wrong = [name for name in consumers if layers[name].in_features != width]
        if wrong:
            raise ValueError(
                f"folds: {producer!r} has {width} outputs, {wrong[0]!r} takes {layers[wrong[0]].in_features}"
            )
    return [Fold(producer, consumers) for producer, consumers in config.folds]


@dataclass
class _Plan:
    """What to smooth by what, each smoothed layer's alpha, and why the others are not smoothed."""

    choices: list[tuple[Fold, Tensor]] = field(default_factory=list)
    alphas: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def add(self, fold: Fold, alpha: float | None, s: Tensor) -> None:
        for name in fold.consumers:
            self.why.pop(name, None)
            if alpha is None:
                self.why[name] = "its output error is least as it is"
            else:
                self.alphas[name] = alpha
        if alpha is not None:
            self.choices.append((fold, s))


def _plan(
    model: nn.Module, config: SmoothQuantConfig, forward_loop: ForwardLoop, filter_fn: Filter | None
) -> tuple[_Plan, Call | None]:
    """Also the first call of the model that the loop makes."""
    layers = convertible(model, filter_fn)
    declared = _declared(model, config, layers)
    taken = {name for fold in declared for name in (fold.producer, *fold.consumers)}
    found, why = find_folds(model, layers)
    inputs = {fqn: _Inputs() for fqn in layers}
    with first_call(model) as calls:
        observe(model, forward_loop, layers, lambda fqn, layer, x, y: inputs[fqn].add(rows_of(layer, x)))
    plan = _Plan(why=why)
    for fold in (*declared, *(fold for fold in found if not taken.intersection(fold.consumers))):
        weights = [cast(Tensor, layers[name].weight) for name in fold.consumers]
        plan.add(fold, *_chosen(inputs[fold.consumers[0]], weights, config))
    return plan, calls[0] if calls else None


@contextmanager
def smoothed(
    model: nn.Module, config: SmoothQuantConfig, forward_loop: ForwardLoop | None, filter_fn: Filter | None = None
) -> Iterator[tuple[dict[str, float], dict[str, str]]]:
    """Smooth the model's linear layers, in place; what they compute stays the same up to rounding, which is checked on
    the first call that the loop makes of the model. If the block raises, the model is as it was.

    Yields:
        by name: alpha of the layers that are smoothed, and for each of the others why it is not.

    Raises:
        ValueError: there is no forward_loop, it never reached a layer, a declared fold does not fit the model, or
            smoothing changed what a layer computes.
    """
    if forward_loop is None:
        raise ValueError("SmoothQuant needs a forward_loop that runs calibration data, got None")
    plan, call = _plan(model, config, forward_loop, filter_fn)
    producers = {fold.producer for fold, _ in plan.choices}
    touched = [model.get_submodule(name) for fold, _ in plan.choices for name in (fold.producer, *fold.consumers)]
    before = [(p, p.detach().clone()) for module in touched for p in module.parameters(recurse=False)]
    if call is None and config.folds:
        raise ValueError("folds can't be checked: forward_loop never called the model itself")
    rest = {fqn: layer for fqn, layer in convertible(model).items() if fqn not in producers}
    wanted = outputs_in(model, call, rest)
    try:
        for fold, s in plan.choices:
            apply_fold(model, fold, s)
        require_same(wanted, outputs_in(model, call, rest))
        yield plan.alphas, plan.why
    except BaseException:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        raise


def apply(
    model: nn.Module, config: SmoothQuantConfig, forward_loop: ForwardLoop | None, filter_fn: Filter | None
) -> Report:
    """Smooth and quantize; the report has each smoothed layer's ``alpha``, and why others were not smoothed."""
    method: Apply = static.apply if config.static else dynamic.apply
    with smoothed(model, config, forward_loop, filter_fn) as (alphas, why):
        report = method(model, config, forward_loop, filter_fn)
    rows = []
    for row in report.layers:
        figures = {"alpha": alphas[row.fqn]} if row.fqn in alphas else {}
        note = f"not smoothed: {why[row.fqn]}" if row.fqn in why else row.note
        rows.append(replace(row, figures={**row.figures, **figures}, note=note))
    return Report(tuple(rows))
