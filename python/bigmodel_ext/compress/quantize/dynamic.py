"""INT8 weights, activations quantized on the fly: nothing is needed but the weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.convert import Filter, Int8DynamicActivationInt8WeightConfig, convertible
from bigmodel_ext.nn import Int8Conv2d, Int8Linear

_FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: Int8Linear.from_float,
    nn.Conv2d: Int8Conv2d.from_float,
}


def apply(
    model: nn.Module,
    config: Int8DynamicActivationInt8WeightConfig,
    forward_loop: ForwardLoop | None,
    filter_fn: Filter | None,
) -> Report:
    """What ``bigmodel_ext.quantize_`` does; with a forward_loop, the report has the error of each layer's output."""
    layers = convertible(model, filter_fn, tuple(_FORMS))
    made = {fqn: form(layer, config.weight_scales) for fqn, layer in layers.items()}
    return exchange_made(model, layers, made, config, forward_loop, filter_fn)


def form(layer: nn.Module, weight_scales: str) -> nn.Module:
    """The int8 form of an nn.Linear or nn.Conv2d."""
    return _FORMS[type(layer)](layer, weight_scales=weight_scales)
