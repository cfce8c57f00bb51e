"""Converting a model in place: what to do with each layer is a config, which layers is a filter.

Both functions look at the whole model first and build every new layer before they exchange any, so if anything raises
(the filter included) the model is as it was.

A layer is left dense, and :func:`explain` says why, if it is a subclass of nn.Linear, has hooks (pruning and weight
norm by hooks included: remove them first), belongs to an nn.MultiheadAttention, or shares a parameter with another
module (tied embeddings: its conversion would untie them). A module that is used in several places is converted once,
and the same new module stands in all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from bigmodel_ext._candidates import QUANTIZE, SPARSIFY, Maker
from bigmodel_ext._configs import (
    Int8BlockSparseWeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    UnstructuredSparseWeightConfig,
)
from bigmodel_ext._explain import Explanation, LayerReport, explain
from bigmodel_ext._fuse import fuse_dropout_
from bigmodel_ext._masks import block_mask, magnitude_mask
from bigmodel_ext._surgery import COMPRESSED, Changes, Survey

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]


def _convert(
    model: Model, config: object, filter_fn: Filter | None, table: dict[type, dict[type[nn.Module], Maker]]
) -> Model:
    if type(config) not in table:
        allowed = " or ".join(cls.__name__ for cls in table)
        raise TypeError(f"config must be an instance of {allowed}, got {config!r}")
    makers, survey = table[type(config)], Survey(model)
    if type(model) in makers:
        raise ValueError(
            f"model is itself an nn.{type(model).__name__}, which can't be exchanged in place: use from_float or "
            "from_dense of the layer wanted (nn.Int8Linear.from_float(model), say), or wrap it in an nn.Sequential"
        )
    changes, left, places = Changes(), [], list(survey.layers(*makers))
    with torch.no_grad():
        for place in places:
            if filter_fn is not None and not filter_fn(place.module, place.fqn):
                continue
            made = survey.why_not(place) or makers[type(place.module)](place.module, config)
            if isinstance(made, str):
                left.append(f"{place.fqn}: {made}")
            else:
                changes.replace(place, made[0])
    if not changes.swaps and not any(isinstance(place.module, COMPRESSED) for place in places):
        none = " or ".join(f"nn.{kind.__name__}" for kind in makers)
        reasons = "; ".join(left) or ("filter_fn chose none" if filter_fn else f"the model has no {none}")
        warnings.warn(f"no layer was converted: {reasons}", UserWarning, stacklevel=3)
    changes.apply(model)
    return model


def quantize_(model: Model, config: Int8DynamicActivationInt8WeightConfig, filter_fn: Filter | None = None) -> Model:
    """Exchange the model's linear layers, in place, for quantized ones; see the module's notes on what is left.

    Args:
        model: any module but a bare nn.Linear.
        config: Int8DynamicActivationInt8WeightConfig().
        filter_fn: filter_fn(module, fqn) -> bool chooses among the model's nn.Linear; default: all.

    Returns:
        model. A UserWarning is given if nothing was converted.

    Raises:
        TypeError: config is of another class.
        ValueError: model is itself an nn.Linear.
    """
    return _convert(model, config, filter_fn, QUANTIZE)


def sparsify_(
    model: Model,
    config: UnstructuredSparseWeightConfig | Int8BlockSparseWeightConfig,
    filter_fn: Filter | None = None,
) -> Model:
    """Exchange the model's linear layers, in place, for sparse ones; arguments, result and errors as in
    :func:`quantize_`. What is pruned by `sparsity` is zeroed in the new layer, not in the old one."""
    return _convert(model, config, filter_fn, SPARSIFY)


__all__ = [
    "Explanation",
    "Int8BlockSparseWeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "LayerReport",
    "UnstructuredSparseWeightConfig",
    "block_mask",
    "explain",
    "fuse_dropout_",
    "magnitude_mask",
    "quantize_",
    "sparsify_",
]
