"""INT8 weights under float activations: a quarter of the memory and, where reading weights is what takes the time (few
rows), of the time; the activations keep their precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.convert import Filter, WeightConfig, convertible
from bigmodel_ext.nn import Int8WeightOnlyLinear
from bigmodel_ext.nn._int8_weight import require_scales


@dataclass(frozen=True)
class Int8WeightOnlyConfig(WeightConfig):
    """:class:`nn.Int8WeightOnlyLinear`; nn.Linear only. weight_scales: as in Int8DynamicActivationInt8WeightConfig."""

    weight_scales: str = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scales(self.weight_scales)


def apply(
    model: nn.Module, config: Int8WeightOnlyConfig, forward_loop: ForwardLoop | None, filter_fn: Filter | None
) -> Report:
    """Nothing is needed but the weights; with a forward_loop, the report has the error of each layer's output."""
    layers = convertible(model, filter_fn)
    made = {
        fqn: Int8WeightOnlyLinear.from_float(cast(nn.Linear, layer), config.weight_scales)
        for fqn, layer in layers.items()
    }
    return exchange_made(model, layers, made, config, forward_loop, filter_fn)
