"""Which of a model's layers are meant: by name, by the module itself, or by a module that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from bigmodel_ext.compress.calibrate import already_converted

Named = str | nn.Module  # a layer, or a module that holds layers


def within(model: nn.Module, argument: str, named: Named) -> set[nn.Module]:
    """This module of the model and all inside it. Raises ValueError: the model doesn't have it."""
    found = dict(model.named_modules(remove_duplicate=False)).get(named) if isinstance(named, str) else named
    if found is None or all(found is not module for module in model.modules()):
        told = repr(named) if isinstance(named, str) else f"such {type(named).__name__}"
        raise ValueError(f"{argument}: the model has no {told}")
    return set(found.modules())


def chosen(
    model: nn.Module,
    candidates: Mapping[str, nn.Module],
    ignored_layers: Iterable[Named],
    filter_fn: Callable[[nn.Module, str], bool] | None,
    wanted: str,
) -> dict[str, nn.Module]:
    """The candidates that are not ignored and that filter_fn(module, fqn) chooses. Raises ValueError: there is none,
    `wanted` says of what."""
    left_out = {module for named in ignored_layers for module in within(model, "ignored_layers", named)}
    found = {
        fqn: module
        for fqn, module in candidates.items()
        if module not in left_out and (filter_fn is None or filter_fn(module, fqn))
    }
    if not found:
        raise ValueError(f"no {wanted} is left to be pruned{already_converted(model)}")
    return found


def ratios_of(model: nn.Module, layers: Mapping[str, nn.Module], ratios: Mapping[Any, float]) -> dict[str, float]:
    """A pruning_ratio_dict by the names of layers; of two keys that hold the same layer, the later counts.

    Raises ValueError: a key is not in the model, or holds none of the layers."""
    found: dict[str, float] = {}
    for named, ratio in ratios.items():
        inside = within(model, "pruning_ratio_dict", named)
        names = [fqn for fqn, layer in layers.items() if layer in inside]
        if not names:
            told = named if isinstance(named, str) else type(named).__name__
            raise ValueError(f"pruning_ratio_dict: {told} is or holds none of the layers that are pruned")
        found |= dict.fromkeys(names, ratio)
    return found
