"""Replacing modules inside a model: where they are, which may be replaced, and doing it all at once or not at all."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._checks import FLOATS, INT8_MAX_K
from bigmodel_ext._pruned import PRUNED, carry
from bigmodel_ext.nn._compressed import Compressed

DENSE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)  # what conversion knows how to exchange ...
COMPRESSED: tuple[type[nn.Module], ...] = (Compressed,)  # ... and what it puts there, which subclasses it
KEPT = "_bigmodel_kept"  # attribute of a layer that conversion was asked for and left dense: why
SIMULATED = "_bigmodel_simulated"  # class attribute of layers that stand for converted ones while training goes on
_ABSENT = object()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_STATE = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


@dataclass(frozen=True)
class Place:
    """A module, the first name it has, and every (parent, attribute) that holds it; the root has none."""

    fqn: str
    module: nn.Module
    holders: tuple[tuple[nn.Module, str], ...]


def places(model: nn.Module) -> dict[int, Place]:
    """By id of the module, in the order of named_modules()."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    named = list(model.named_modules())
    for _, parent in named:
        for name, child in parent._modules.items():
            if child is not None:
                holders.setdefault(id(child), []).append((parent, name))
    return {id(m): Place(fqn, m, tuple(holders.get(id(m), ()))) for fqn, m in named}


def has_hooks(module: nn.Module, *, of_state: bool = True) -> bool:
    return any(getattr(module, name, None) for name in (*_HOOKS, *(_HOOKS_OF_STATE if of_state else ())))


def _tied(model: nn.Module) -> dict[int, list[str]]:
    """By id of each parameter that several modules hold: their names for it."""
    names: dict[int, list[str]] = {}
    for fqn, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(f"{fqn}.{name}" if fqn else name)
    return {key: held for key, held in names.items() if len(held) > 1}


class Survey:
    """What a model holds, looked at once before anything is changed."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        self.model = model
        self.places = places(model)
        self.tied = _tied(model)

    def layers(self, *kinds: type[nn.Module]) -> Iterator[Place]:
        return (place for place in self.places.values() if isinstance(place.module, kinds))

    def tied_names(self, tensor: Tensor | None) -> list[str]:
        return self.tied.get(id(tensor), [])

    def why_not(self, place: Place) -> str | None:
        """Why a layer (an instance of one of DENSE) can't be replaced by a compressed one, or None."""
        layer: Any = place.module
        if isinstance(layer, COMPRESSED):
            return "already converted"
        if any(isinstance(parent, nn.MultiheadAttention) for parent, _ in place.holders):
            return "nn.MultiheadAttention reads its weight without calling it"
        if type(layer) not in DENSE:
            base = next(kind.__name__ for kind in DENSE if isinstance(layer, kind))
            return f"{type(layer).__name__} is a subclass of nn.{base}"
        if has_hooks(layer):
            return "it has hooks, which a replacement would lose"
        if layer.weight.dtype not in FLOATS:
            return f"its weight is {str(layer.weight.dtype).removeprefix('torch.')}"
        if (k := math.prod(layer.weight.shape[1:])) > INT8_MAX_K:
            return f"in_features {k} exceeds {INT8_MAX_K}"
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"its padding_mode is {layer.padding_mode!r}"
        for tensor in (layer.weight, layer.bias):
            names = self.tied_names(tensor)
            if names:
                return f"it shares a parameter with other modules ({', '.join(names)})"
        return None


def _computes(module: nn.Module) -> bool:
    """It does something else with its weight than the class it subclasses."""
    return isinstance(module, COMPRESSED) or getattr(type(module), SIMULATED, False)


@dataclass
class Changes:
    """What to do to a model: modules to exchange, modules whose class or activation changes, and layers left dense,
    with the reason, which stays with them (in copies too, but not in a state dict). Nothing happens before `apply`."""

    swaps: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    classes: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list)
    kept: list[tuple[nn.Module, str]] = field(default_factory=list)
    activations: list[tuple[nn.Module, str]] = field(default_factory=list)
    _undo: list[tuple[nn.Module, str, nn.Module | None]] = field(default_factory=list)
    _undo_attributes: list[tuple[nn.Module, str, object]] = field(default_factory=list)

    def replace(self, place: Place, new: nn.Module) -> None:
        self.swaps += [(parent, name, new) for parent, name in place.holders]

    def apply(self, model: nn.Module) -> None:
        try:
            self._apply(model)
        except BaseException:
            self.revert()
            raise

    def _apply(self, model: nn.Module) -> None:
        for parent, name, new in self.swaps:
            self._undo.append((parent, name, parent._modules[name]))
            record = carry(parent._modules[name], new)
            parent._modules[name] = new
            if record is not None:
                self._set(new, PRUNED, record)
        for module, cls in self.classes:
            self._set(module, "__class__", cls)
        for module, activation in self.activations:
            self._set(module, "activation", activation)
        for module, why in self.kept:
            self._set(module, KEPT, why)
        self._stop_fast_paths(model)

    def revert(self) -> None:
        while self._undo_attributes:
            module, name, value = self._undo_attributes.pop()
            if value is _ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, value)
        while self._undo:
            parent, name, old = self._undo.pop()
            parent._modules[name] = old

    def _set(self, module: nn.Module, name: str, value: object) -> None:
        self._undo_attributes.append((module, name, getattr(module, name, _ABSENT)))
        setattr(module, name, value)

    def _stop_fast_paths(self, model: nn.Module) -> None:
        """In eval mode torch's encoder layers read the dense weights of their children and run a kernel of their own.
        These attributes make them call the children instead."""
        for module in model.modules():
            if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
                name, off = (
                    ("use_nested_tensor", False)
                    if isinstance(module, nn.TransformerEncoder)
                    else ("activation_relu_or_gelu", 0)
                )
                if getattr(module, name, off) and any(_computes(m) for m in module.modules()):
                    self._set(module, name, off)


def without_bias(linear: nn.Linear) -> nn.Linear:
    """A second nn.Linear on the same weight Parameter, that adds no bias."""
    new = copy.copy(linear)
    new._parameters = {**linear._parameters, "bias": None}
    new._buffers, new._modules = dict(linear._buffers), dict(linear._modules)
    return new


def nbytes(module: nn.Module) -> int:
    """Bytes of the tensors a module holds itself."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(t.numel() * t.element_size() for t in tensors)


def device_of(module: nn.Module) -> torch.device:
    tensor = next((t for t in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device
