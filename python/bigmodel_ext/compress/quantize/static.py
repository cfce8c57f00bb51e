"""Static INT8: one scale for all of a layer's inputs, found on calibration data instead of in each call (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, observe
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.compress.quantize.observers import OBSERVERS, Magnitudes, input_scale
from bigmodel_ext.convert import Filter, WeightConfig, convertible
from bigmodel_ext.nn import Int8Linear
from bigmodel_ext.nn._int8_weight import require_scales


@dataclass(frozen=True)
class Int8StaticActivationInt8WeightConfig(WeightConfig):
    """:class:`nn.Int8Linear` with an ``input_scale``. Needs a forward_loop; nn.Linear only.

    observer: "minmax", the largest magnitude seen is 127; "percentile", `percentile` percent of the values fit (the
    rest saturate); "mse", the rounding and clipping error over the calibration data is least. weight_scales: as in
    Int8DynamicActivationInt8WeightConfig.
    """

    observer: str = "mse"
    percentile: float = 99.99
    weight_scales: str = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scales(self.weight_scales)
        if self.observer not in OBSERVERS:
            raise ValueError(f"observer must be one of {', '.join(OBSERVERS)}, got {self.observer!r}")
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, (int, float)):
            raise TypeError(f"percentile must be a number in (0, 100], got {self.percentile!r}")
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be in (0, 100], got {self.percentile}")


def input_scales(
    model: nn.Module,
    forward_loop: ForwardLoop | None,
    layers: Mapping[str, nn.Module],
    config: Int8StaticActivationInt8WeightConfig,
) -> dict[str, float]:
    """By name, what 1 in int8 stands for in the inputs of each layer.

    Raises:
        ValueError: there is no forward_loop, it never reached a layer, or a layer's inputs hold NaN or infinity.
    """
    if forward_loop is None:
        raise ValueError("static quantization needs a forward_loop that runs calibration data, got None")
    seen = {fqn: Magnitudes() for fqn in layers}

    def add(fqn: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        try:
            seen[fqn].add(x)
        except ValueError as error:
            raise ValueError(f"{fqn}: {error}") from error

    observe(model, forward_loop, layers, add)
    return {fqn: input_scale(magnitudes, config.observer, config.percentile) for fqn, magnitudes in seen.items()}


def apply(
    model: nn.Module,
    config: Int8StaticActivationInt8WeightConfig,
    forward_loop: ForwardLoop | None,
    filter_fn: Filter | None,
) -> Report:
    """Calibrate, then exchange; the report has each layer's ``input scale``."""
    layers = convertible(model, filter_fn)
    scales = input_scales(model, forward_loop, layers, config)
    made = {
        fqn: Int8Linear.from_float(cast(nn.Linear, layer), scales[fqn], config.weight_scales)
        for fqn, layer in layers.items()
    }
    figures = {fqn: {"input scale": scale} for fqn, scale in scales.items()}
    return exchange_made(model, layers, made, config, forward_loop, filter_fn, figures)
