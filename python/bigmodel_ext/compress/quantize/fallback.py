"""Layers that suffer most from quantization stay float: by the error of their own output, or as many as it takes to
keep the model's accuracy."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn

from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.controller.budget import Budget, ValidationFn
from bigmodel_ext.compress.quantize._apply import quantize_
from bigmodel_ext.compress.quantize._report import LayerQuantized, Report
from bigmodel_ext.convert import Filter


def _but(filter_fn: Filter | None, kept: Collection[str]) -> Filter:
    return lambda module, fqn: fqn not in kept and (filter_fn is None or filter_fn(module, fqn))


def _quantize_but(
    model: nn.Module,
    config: Any,
    forward_loop: ForwardLoop,
    filter_fn: Filter | None,
    trial: Report,
    kept: Collection[str],
    why: str,
) -> Report:
    """Quantize all but `kept`; the report has those too, with what they would have cost in the trial."""
    rows: dict[str, LayerQuantized] = {}
    if len(kept) < len(trial.layers):
        report = quantize_(model, config, forward_loop, _but(filter_fn, kept))
        rows = {row.fqn: row for row in report.layers}
    for row in trial.layers:
        if row.fqn in kept:
            told = f"kept float: its output error would be {row.output_error:.3%}, {why}"
            kind = type(model.get_submodule(row.fqn)).__name__
            rows[row.fqn] = LayerQuantized(row.fqn, kind, row.bytes_before, row.bytes_before, None, told)
    return Report(tuple(rows[row.fqn] for row in trial.layers))


def quantize_below_(
    model: nn.Module,
    config: Any,
    forward_loop: ForwardLoop,
    max_output_error: float,
    filter_fn: Filter | None = None,
) -> Report:
    """:func:`quantize_`, with layers kept float whose relative output error ``||y' - y|| / ||y||`` on the calibration
    data would be above max_output_error. A copy of the model is quantized first, to see.

    Args:
        forward_loop: as in `quantize_`; it must give the same data each time.

    Returns:
        a report with the kept layers too, whose reason has the figure.

    Raises:
        ValueError: max_output_error is negative or NaN; and as `quantize_`.
    """
    if not max_output_error >= 0:
        raise ValueError(f"max_output_error must be at least 0, got {max_output_error}")
    trial = quantize_(copy.deepcopy(model), config, forward_loop, filter_fn)
    kept = {row.fqn for row in trial.layers if row.output_error is not None and row.output_error > max_output_error}
    return _quantize_but(model, config, forward_loop, filter_fn, trial, kept, f"above {max_output_error:.3%}")


def quantize_within_(
    model: nn.Module,
    config: Any,
    forward_loop: ForwardLoop,
    validation_fn: ValidationFn,
    max_drop: float,
    drop_type: str = "absolute",
    filter_fn: Filter | None = None,
) -> Report:
    """:func:`quantize_`, with as few layers kept float as it takes for the score to drop by no more than max_drop;
    those of the largest output error are kept first. How many is found by bisection on copies of the model, each
    quantized and validated.

    Args:
        forward_loop: as in `quantize_`; it must give the same data each time.
        validation_fn: validation_fn(model) -> score, higher is better; called in eval mode.
        max_drop: at least 0.
        drop_type: the score may be lower by max_drop ("absolute") or by ``max_drop * |score|`` ("relative").

    Returns:
        a report with the kept layers too, whose reason has the figures.

    Raises:
        ValueError: max_drop is negative, drop_type is neither, or validation_fn returned NaN or infinity; and as
            `quantize_`. The model is as it was.
    """
    budget = Budget(validation_fn, max_drop, drop_type)
    base = budget.score(model)
    least = budget.floor(base)

    def attempt(kept: Collection[str]) -> tuple[Report, float]:
        other = copy.deepcopy(model)
        report = quantize_(other, config, forward_loop, _but(filter_fn, kept))
        return report, budget.score(other)

    trial, score = attempt(())
    errors = {row.fqn: row.output_error for row in trial.layers if row.output_error is not None}
    worst = sorted(errors, key=lambda fqn: -errors[fqn])
    low, high = -1, 0 if score >= least else len(worst)  # keeping `low` is not enough, `high` is
    low = low if high == 0 else 0
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(worst[:middle])[1] >= least:
            high = middle
        else:
            low = middle
    why = f"and the score {score:.6g} with all layers quantized, below {least:.6g}"
    return _quantize_but(model, config, forward_loop, filter_fn, trial, set(worst[:high]), why)
