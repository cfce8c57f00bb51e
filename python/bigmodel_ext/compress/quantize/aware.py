"""Quantization-aware training: a model learns with the rounding it will be run with (Jacob et al. 2018).

    prepare(model, config)      # in place: layers round as their int8 form will
    ...                         # train as usual: the same parameters, names and state dict
    convert(model)              # in place: the int8 layers themselves

The prepared model computes what the converted one does up to float rounding, so what is validated is what is shipped.
Weights that a mask holds at zero stay zero in int8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, already_converted
from bigmodel_ext.compress.quantize import dynamic, static
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.compress.quantize._simulated import SimulatedInt8, SimulatedInt8Conv2d, SimulatedInt8Linear
from bigmodel_ext.compress.quantize.static import Int8StaticActivationInt8WeightConfig
from bigmodel_ext.convert import (
    Filter,
    Int8BlockSparseWeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    convertible,
    reclass_,
)
from bigmodel_ext.nn import Int8Linear, Int8SparseLinear

_CLASSES: dict[type, dict[type[nn.Module], type[nn.Module]]] = {
    Int8DynamicActivationInt8WeightConfig: {nn.Linear: SimulatedInt8Linear, nn.Conv2d: SimulatedInt8Conv2d},
    Int8StaticActivationInt8WeightConfig: {nn.Linear: SimulatedInt8Linear},
    Int8BlockSparseWeightConfig: {nn.Linear: SimulatedInt8Linear},
}


def prepare(
    model: nn.Module, config: Any, forward_loop: ForwardLoop | None = None, filter_fn: Filter | None = None
) -> tuple[str, ...]:
    """Give the model's layers, in place, the rounding of their int8 form; parameters and their names stay as they are
    (a static config adds the buffer ``input_scale``, calibrated now and fixed from then on).

    Args:
        model: any module that is not itself a layer to prepare.
        config: what :func:`convert` will convert by: Int8DynamicActivationInt8WeightConfig,
            Int8StaticActivationInt8WeightConfig (needs a forward_loop) or Int8BlockSparseWeightConfig (for weights that
            masks keep zero in 1x4 blocks while the model trains; ``sparsity`` must be None).
        filter_fn: filter_fn(module, fqn) -> bool chooses among the layers; default: all.

    Returns:
        the names of the prepared layers.

    Raises:
        TypeError: config is of another class.
        ValueError: no layer can be prepared, calibration failed (see `quantize_`), or config would prune or choose
            other weight scales.
    """
    if type(config) not in _CLASSES:
        raise TypeError(f"config must be an instance of {' or '.join(c.__name__ for c in _CLASSES)}, got {config!r}")
    if getattr(config, "weight_scales", "max") != "max":
        raise ValueError(f"weight_scales must be 'max', which training follows, got {config.weight_scales!r}")
    if getattr(config, "sparsity", None) is not None:
        raise ValueError(f"sparsity must be None: masks prune while the model trains, got {config.sparsity}")
    classes = _CLASSES[type(config)]
    others = {layer.config.rows for layer in prepared(model).values()} - {config.rows}
    if others:
        raise ValueError(f"rows must be {others.pop()}, as those of the layers prepared before, got {config.rows}")
    layers = convertible(model, filter_fn, tuple(classes))
    if not layers:
        names = " or ".join(f"nn.{kind.__name__}" for kind in classes)
        raise ValueError(
            f"the model has no {names} that can be prepared"
            + (" and filter_fn chooses" * bool(filter_fn))
            + already_converted(model)
        )
    scales: dict[str, float] = {}
    if isinstance(config, Int8StaticActivationInt8WeightConfig):
        scales = static.input_scales(model, forward_loop, layers, config)
    reclass_(model, {fqn: classes[type(layer)] for fqn, layer in layers.items()})
    for fqn, layer in layers.items():
        assert isinstance(layer, SimulatedInt8)
        layer.config = config
        if fqn in scales:
            device = next(layer.parameters()).device
            layer.register_buffer("input_scale", torch.tensor(scales[fqn], dtype=torch.float32, device=device))
    return tuple(layers)


def prepared(model: nn.Module) -> dict[str, SimulatedInt8]:
    """The layers that :func:`prepare` has changed, by name."""
    return {fqn: module for fqn, module in model.named_modules() if isinstance(module, SimulatedInt8)}


def convert(model: nn.Module, forward_loop: ForwardLoop | None = None) -> Report:
    """Exchange the prepared layers, in place, for the int8 ones they simulate, each by the config it was prepared with;
    those that would be slower become plain layers again, with a warning (``rows=()`` in the config: none are timed).

    Args:
        forward_loop: for the report: errors are those of the int8 layers against the trained ones without rounding.

    Returns:
        a report with a row for each prepared layer.

    Raises:
        ValueError: the model has no prepared layers. The model is as it was whatever is raised.
    """
    layers = prepared(model)
    if not layers:
        raise ValueError("the model has no prepared layers: call prepare(model, config) first")
    configs = {fqn: layer.config for fqn, layer in layers.items()}
    simulated = {fqn: type(layer) for fqn, layer in layers.items()}
    reclass_(model, {fqn: nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d for fqn, layer in layers.items()})
    scales = {fqn: layer._buffers.pop("input_scale", None) for fqn, layer in layers.items()}
    try:
        made = {fqn: _form(layer, configs[fqn], scales[fqn]) for fqn, layer in layers.items()}
        own = next(iter(configs.values()))
        report = exchange_made(model, layers, made, own, forward_loop, lambda module, fqn: fqn in layers)
    except BaseException:
        reclass_(model, simulated)
        for fqn, scale in scales.items():
            if scale is not None:
                layers[fqn].register_buffer("input_scale", scale)
        raise
    for layer in layers.values():
        del layer.config
    return report


def _form(layer: Any, config: Any, scale: Tensor | None) -> nn.Module:
    if isinstance(config, Int8BlockSparseWeightConfig):
        return Int8SparseLinear.from_dense(layer)
    return dynamic.form(layer, "max") if scale is None else Int8Linear.from_float(layer, input_scale=float(scale))
