"""The one entry of quantization: which method a config stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.quantize import dynamic, hamiltonian, probabilistic, smooth, static, weight_only
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.convert import Filter, Int8DynamicActivationInt8WeightConfig

Apply = Callable[[nn.Module, Any, "ForwardLoop | None", "Filter | None"], Report]

# A method: the class of its config -> apply(model, config, forward_loop, filter_fn).
METHODS: dict[type, Apply] = {
    Int8DynamicActivationInt8WeightConfig: dynamic.apply,
    static.Int8StaticActivationInt8WeightConfig: static.apply,
    weight_only.Int8WeightOnlyConfig: weight_only.apply,
    smooth.SmoothQuantConfig: smooth.apply,
    hamiltonian.HamiltonianConfig: hamiltonian.apply,
    probabilistic.ProbabilisticInt8Config: probabilistic.apply,
}


def quantize_(
    model: nn.Module,
    config: Any,
    forward_loop: ForwardLoop | None = None,
    filter_fn: Filter | None = None,
) -> Report:
    """Exchange the model's layers, in place, for quantized ones that are not slower (see ``bigmodel_ext.convert``).

    Args:
        model: any module that is not itself one of the layers to exchange.
        config: says the method; an instance of one of the classes in `METHODS`.
        forward_loop: forward_loop(model) runs the model on calibration data; methods that need none take it for the
            report, whose output errors are measured on it.
        filter_fn: filter_fn(module, fqn) -> bool chooses among the model's layers; default: all that the method takes.

    Returns:
        a report with a row for each layer that could be exchanged; str() of it is a table.

    Raises:
        TypeError: config is of another class.
        ValueError: model is itself a layer; forward_loop is missing where the method needs one, or never reached a
            layer. The model is as it was whatever is raised.
    """
    apply = METHODS.get(type(config))
    if apply is None:
        allowed = " or ".join(cls.__name__ for cls in METHODS)
        raise TypeError(f"config must be an instance of {allowed}, got {config!r}")
    return apply(model, config, forward_loop, filter_fn)
