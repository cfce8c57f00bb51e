"""Converting a model in place: what to do with each layer is a config, which layers is a filter.

Never slower: unless the config says ``rows=()``, each layer on the CPU is timed in its old and its new form, at the
config's numbers of activation rows and the current number of threads (some hundredths of a second for each distinct
shape; figures are remembered, in a file too: see ``BIGMODEL_CACHE``). A layer that would get slower at any of them is
kept dense: the very same module, not pruned either. A warning counts such layers, and :func:`explain` shows their
figures. On other devices nothing is timed and every layer is converted.

A layer is also left dense if it is a subclass of nn.Linear, has hooks (pruning and weight norm by hooks included:
remove them first), belongs to an nn.MultiheadAttention, or shares a parameter with another module (tied embeddings:
its conversion would untie them). A module that is used in several places is converted once, and the same new module
stands in all of them.

Both functions look at the whole model first and build every new layer before they exchange any, so if anything raises
(the filter included) the model is as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from bigmodel_ext import _gains
from bigmodel_ext._candidates import QUANTIZE, SPARSIFY, Made, Maker
from bigmodel_ext._choose import not_slower
from bigmodel_ext._configs import (
    BlockSparseWeightConfig,
    Int8BlockSparseWeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    SemiSparseWeightConfig,
    UnstructuredSparseWeightConfig,
    WeightConfig,
)
from bigmodel_ext._epilogue import fuse_activation_
from bigmodel_ext._explain import Explanation, LayerReport, explain
from bigmodel_ext._fuse import fuse_dropout_
from bigmodel_ext._masks import block_mask, largest_mask, magnitude_mask, square_block_mask, two_four_mask
from bigmodel_ext._surgery import COMPRESSED, KEPT, Changes, Survey, device_of, nbytes

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]


def _chosen(layer: nn.Module, candidates: list[nn.Module], rows: tuple[int, ...]) -> nn.Module | str:
    timed = rows and device_of(layer).type == "cpu"
    return not_slower(layer, candidates, rows) if timed else candidates[0]


def _names(kinds: Iterable[type]) -> str:
    return " or ".join(f"nn.{kind.__name__}" for kind in kinds)


def _warn(left: dict[str, str], slower: int, nothing: str) -> None:
    """That layers were kept dense for their speed, or else that nothing was converted."""
    reasons = "; ".join(f"{fqn}: {why}" for fqn, why in left.items()) or nothing
    told = "no layer was converted"
    if slower:
        told = f"{slower} layer(s) would get slower and were kept dense (rows=() converts without measuring)"
    warnings.warn(f"{told}: {reasons}", UserWarning, stacklevel=5)


def _survey(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Survey:
    if type(model) in kinds:
        raise ValueError(
            f"model is itself an nn.{type(model).__name__}, which can't be exchanged in place: use from_float or "
            "from_dense of the layer wanted (nn.Int8Linear.from_float(model), say), or wrap it in an nn.Sequential"
        )
    return Survey(model)


def convertible(
    model: nn.Module, filter_fn: Filter | None = None, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> dict[str, nn.Module]:
    """By name: the layers that :func:`exchange_` would call `make` for, given the same arguments. Calibration looks at
    these before anything is exchanged; the filter is called once more by `exchange_`.

    Raises: as :func:`exchange_`.
    """
    survey = _survey(model, kinds)
    return {
        place.fqn: place.module
        for place in survey.layers(*kinds)
        if (filter_fn is None or filter_fn(place.module, place.fqn)) and survey.why_not(place) is None
    }


def reclass_(model: Model, classes: Mapping[str, type[nn.Module]]) -> Model:
    """Change the classes of the model's modules of these names, in place and all or none: each keeps its parameters,
    its attributes and its identity. torch's fast paths, which would read the weights of modules without calling them,
    are shut off for layers whose class has a true ``_bigmodel_simulated``."""
    changes = Changes()
    changes.classes = [(model.get_submodule(fqn), cls) for fqn, cls in classes.items()]
    changes.apply(model)
    return model


def why_kept(layer: nn.Module) -> str | None:
    """Why a conversion that was asked for left this layer as it is; None if none was asked for."""
    return getattr(layer, KEPT, None)


def exchange_(
    model: Model,
    make: Callable[[nn.Module, str], Made],
    rows: tuple[int, ...],
    filter_fn: Filter | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> Model:
    """What :func:`quantize_` does, with the new layers made by the caller: methods that need more than the weights
    (calibration data, a solver) convert through this.

    Args:
        make: make(layer, fqn) returns candidates to take the layer's place, the preferred one first, or a string that
            says why there is none; the layer itself must be left as it is.
        rows: numbers of activation rows at which a new layer may not be slower; () converts without measuring.
        filter_fn: filter_fn(module, fqn) -> bool chooses among the model's layers; default: all.
        kinds: the classes of layers to convert, of (nn.Linear, nn.Conv2d).

    Returns, raises: as :func:`quantize_`.
    """
    survey = _survey(model, kinds)
    changes, left, slower = Changes(), dict[str, str](), 0
    with torch.no_grad():
        for place in survey.layers(*kinds):
            layer = place.module
            if isinstance(layer, COMPRESSED) or (filter_fn is not None and not filter_fn(layer, place.fqn)):
                continue
            made = survey.why_not(place) or make(layer, place.fqn)
            form = made if isinstance(made, str) else _chosen(layer, made, rows)
            if isinstance(form, nn.Module):
                changes.replace(place, form)
                continue
            changes.kept.append((layer, form))
            left[place.fqn] = form
            slower += form is not made
    _gains.save()
    if slower or not (changes.swaps or any(True for _ in survey.layers(*COMPRESSED))):
        _warn(left, slower, "filter_fn chose none" if filter_fn else f"the model has no {_names(kinds)}")
    changes.apply(model)
    return model


def _convert(
    model: Model, config: WeightConfig, filter_fn: Filter | None, table: dict[type, dict[type[nn.Module], Maker]]
) -> Model:
    if type(config) not in table:
        allowed = " or ".join(cls.__name__ for cls in table)
        raise TypeError(f"config must be an instance of {allowed}, got {config!r}")
    makers = table[type(config)]

    def make(layer: nn.Module, fqn: str) -> Made:
        return makers[type(layer)](layer, config)

    return exchange_(model, make, config.rows, filter_fn, tuple(makers))


def quantize_(model: Model, config: Int8DynamicActivationInt8WeightConfig, filter_fn: Filter | None = None) -> Model:
    """Exchange the model's layers, in place, for quantized ones that are not slower; see the module's notes.

    Args:
        model: any module but a bare nn.Linear.
        config: Int8DynamicActivationInt8WeightConfig().
        filter_fn: filter_fn(module, fqn) -> bool chooses among the model's nn.Linear; default: all.

    Returns:
        model. A UserWarning is given if layers were kept dense because they would get slower, or if nothing was
        converted.

    Raises:
        TypeError: config is of another class.
        ValueError: model is itself an nn.Linear.
    """
    return _convert(model, config, filter_fn, QUANTIZE)


def sparsify_(
    model: Model,
    config: UnstructuredSparseWeightConfig
    | Int8BlockSparseWeightConfig
    | BlockSparseWeightConfig
    | SemiSparseWeightConfig,
    filter_fn: Filter | None = None,
) -> Model:
    """Exchange the model's layers, in place, for sparse ones that are not slower; arguments, result and errors as in
    :func:`quantize_`. What is pruned by `sparsity` is zeroed in the new layer, not in the old one: a layer that is kept
    dense is not pruned."""
    return _convert(model, config, filter_fn, SPARSIFY)


__all__ = [
    "BlockSparseWeightConfig",
    "Explanation",
    "Int8BlockSparseWeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "LayerReport",
    "SemiSparseWeightConfig",
    "UnstructuredSparseWeightConfig",
    "WeightConfig",
    "block_mask",
    "convertible",
    "exchange_",
    "explain",
    "fuse_activation_",
    "fuse_dropout_",
    "largest_mask",
    "magnitude_mask",
    "nbytes",
    "quantize_",
    "reclass_",
    "sparsify_",
    "square_block_mask",
    "two_four_mask",
    "why_kept",
]
