"""Layers made by a method take their place in the model, and what that does is measured: shared by all methods.

A method's ``apply(model, config, forward_loop, filter_fn)`` asks `convert.convertible` which layers there are, makes
new ones from them (and from calibration data), and hands them to `exchange_made`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, observe
from bigmodel_ext.compress.quantize._report import LayerQuantized, Report
from bigmodel_ext.convert import Filter, WeightConfig, exchange_, nbytes, why_kept

Made = Mapping[str, nn.Module | str]  # by name: the new layer, or why there is none
Figures = Mapping[str, Mapping[str, float]]  # by name: a method's own figures of a layer


def output_errors(
    model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module], made: Made
) -> dict[str, float]:
    """``||y' - y|| / ||y||`` (Frobenius norms, over all of the loop's data) of each new layer on the inputs that its
    layer sees in the model as it is; 0 where both are zero.

    Raises:
        ValueError: the loop never reached some of the layers.
    """
    sums = {fqn: [0.0, 0.0] for fqn, new in made.items() if isinstance(new, nn.Module)}

    def add(fqn: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        new = made[fqn]
        assert isinstance(new, nn.Module)
        difference = new(x).float() - y.float()
        sums[fqn][0] += float(difference.square().sum(dtype=torch.float64))
        sums[fqn][1] += float(y.float().square().sum(dtype=torch.float64))

    observe(model, forward_loop, {fqn: layers[fqn] for fqn in sums}, add)
    return {fqn: (wrong / whole) ** 0.5 if whole else (0.0 if wrong == 0 else torch.inf)
            for fqn, (wrong, whole) in sums.items()}  # fmt: skip


def exchange_made(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    made: Made,
    config: WeightConfig,
    forward_loop: ForwardLoop | None = None,
    filter_fn: Filter | None = None,
    figures: Figures | None = None,
    notes: Mapping[str, str] | None = None,
) -> Report:
    """Exchange `layers` (those of `convert.convertible` for the same filter_fn) for what was made of them, unless they
    would get slower, and report; with a forward_loop, the error of each layer's output too.

    Raises:
        ValueError: forward_loop never reached a layer. The model is as it was whatever is raised.
    """
    errors = output_errors(model, forward_loop, layers, made) if forward_loop is not None else {}
    kinds = tuple(dict.fromkeys(type(layer) for layer in layers.values())) or (nn.Linear,)

    def make(layer: nn.Module, fqn: str) -> list[nn.Module] | str:
        new = made.get(fqn, "the method made nothing of it")
        return new if isinstance(new, str) else [new]

    before = {fqn: nbytes(layer) for fqn, layer in layers.items()}
    exchange_(model, make, config.rows, filter_fn, kinds)
    rows = []
    for fqn, old in layers.items():
        new = model.get_submodule(fqn)
        reason = "" if new is not old else why_kept(old) or ""
        error = errors.get(fqn) if new is not old else None
        note, own = (notes or {}).get(fqn, ""), (figures or {}).get(fqn, {})
        rows.append(LayerQuantized(fqn, type(new).__name__, before[fqn], nbytes(new), error, reason, note, own))
    return Report(tuple(rows))
