"""What can be taken out of a model: groups of units (channels, neurons, heads), each unit being the coupled slices of
all tensors that must go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._pruned import Cut

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Slice:
    """Of one tensor's dimension: which indices each unit occupies. role: "out" where a layer makes the units, "in"
    where one takes them in, "with" where something between does (norms, depthwise convolutions)."""

    fqn: str
    tensor: str
    dim: int
    index: tuple[tuple[int, ...], ...]
    role: str


@dataclass(frozen=True)
class Size:
    """An attribute that shrinks by `per_unit` with each unit taken out; `item` of it, where it is a tuple."""

    fqn: str
    name: str
    per_unit: Fraction
    item: int | None = None


@dataclass(frozen=True)
class Group:
    """size units; those taken out must be a multiple of `blocks`, as many of each of that many equal blocks. `kind` is
    "channel", "neuron", "head" or "width"; `exact`: taking a unit out is the same as zeroing what reads it."""

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    sizes: tuple[Size, ...] = ()
    blocks: int = 1
    exact: bool = True

    def layers(self, role: str) -> list[str]:
        return list(dict.fromkeys(s.fqn for s in self.slices if s.role == role and s.tensor == "weight"))

    @property
    def features(self) -> int:
        """How many outputs of a layer one unit is."""
        return next((len(s.index[0]) for s in self.slices if s.role == "out" and s.tensor == "weight"), 1)


def merged_units(index: tuple[tuple[int, ...], ...], units: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted({i for root in unit for i in index[root]})) for unit in units)


def coupled(group: Group, units: list[list[int]]) -> Group:
    """The group with several of its units as one: `units` lists, for each new unit, the old ones."""
    slices = tuple(replace(s, index=merged_units(s.index, units)) for s in group.slices)
    return replace(group, size=len(units), slices=slices)


def cuts_of(model: nn.Module, removed: Iterable[tuple[Group, Iterable[int]]]) -> dict[str, Cut]:
    """What taking out these units of these groups does to each module."""
    gone: dict[tuple[str, str, int], set[int]] = {}
    sizes: dict[tuple[str, str, int | None], Fraction] = {}
    for group, units in removed:
        chosen = list(units)
        for s in group.slices:
            gone.setdefault((s.fqn, s.tensor, s.dim), set()).update(i for unit in chosen for i in s.index[unit])
        for size in group.sizes:
            key = (size.fqn, size.name, size.item)
            sizes[key] = sizes.get(key, Fraction(0)) + size.per_unit * len(chosen)
    cuts: dict[str, Cut] = {}
    for (fqn, name, dim), indices in gone.items():
        if indices:
            tensor = getattr(model.get_submodule(fqn), name)
            kept = [i for i in range(tensor.shape[dim]) if i not in indices]
            cuts.setdefault(fqn, Cut()).kept.setdefault(name, {})[dim] = kept
    for (fqn, name, item), less in sizes.items():
        if less:
            cut = cuts.setdefault(fqn, Cut())
            value = cut.attributes.get(name, getattr(model.get_submodule(fqn), name))
            cut.attributes[name] = _less(value, less, item)
    return cuts


def _less(value: Any, less: Fraction, item: int | None) -> Any:
    if less.denominator != 1:
        raise ValueError(f"{less} units can't be taken off a size of {value}")
    if item is None:
        return value - int(less)
    changed = list(value)
    changed[item] -= int(less)
    return tuple(changed)


def unit_sums(group: Group, scores: Mapping[str, Tensor], roles: tuple[str, ...] = ("out", "in")) -> Tensor:
    """[size] float32: each unit's score, the mean over the group's weights of that weight's scores summed over the
    unit's slice, each weight's first divided by their mean over the units.

    Args:
        scores: of each layer's weight, in its shape; layers that are not there count nothing.
        roles: of the slices that count.
    """
    total, parts = torch.zeros(group.size), 0
    for s in group.slices:
        if s.tensor != "weight" or s.fqn not in scores or s.role not in roles:
            continue
        score = scores[s.fqn].detach().float().cpu()
        along = score.transpose(0, s.dim).flatten(1).sum(1)
        sums = torch.stack([along[list(index)].sum() for index in s.index])
        mean = sums.mean()
        total += sums / mean if mean > 0 else torch.ones_like(sums)
        parts += 1
    return total / max(parts, 1)
