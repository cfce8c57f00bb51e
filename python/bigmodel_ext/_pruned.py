"""Slices of a model's tensors taken out, and the record of it: what `prune.StructuredPruner` does to a model, as data
that does the same to another one.

A pruned module keeps a record (an attribute, so copies have it and state dicts don't): for each of its tensors the
shape as its code builds it and the indices kept of each dimension, and for each of its own attributes that tell a size
(`out_features`, `heads`) the value before and after. The records are the entries of kind "pruned" in a model's plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bigmodel_ext._plan_schema import Entry as Entry
from bigmodel_ext._plan_schema import check, require

Model = TypeVar("Model", bound=nn.Module)
Kept = dict[str, dict[int, list[int]]]  # tensor -> dimension -> indices that stay, ascending
PRUNED = "_bigmodel_pruned"  # the attribute with the record
_ABSENT = object()


@dataclass
class Cut:
    """What is done to one module: the indices kept of its tensors, and the new values of its attributes."""

    kept: Kept = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(type(v) is int and v > 0 for v in value)
    return type(value) is int and value > 0


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


def _checked(fqn: str, module: nn.Module, cut: Cut) -> None:
    for name, dims in cut.kept.items():
        tensor = _tensor(module, name)
        if tensor is None:
            raise ValueError(f"{fqn!r} ({type(module).__name__}) has no parameter or buffer {name!r} to prune")
        for dim, kept in dims.items():
            require(0 <= dim < tensor.dim(), f"{fqn}.{name} has no dimension {dim}, its shape is {list(tensor.shape)}")
            size = tensor.shape[dim]
            rising = all(a < b for a, b in pairwise(kept))
            inside = bool(kept) and kept[0] >= 0 and kept[-1] < size
            require(
                inside and rising, f"{fqn}.{name}: kept indices of dimension {dim} must rise within [0, {size}): {kept}"
            )
    for name, value in cut.attributes.items():
        require(_own_size(module, name), f"{fqn!r} ({type(module).__name__}) has no size {name!r} of its own")
        alike = isinstance(getattr(module, name), tuple) == isinstance(value, (list, tuple))
        require(_size(value) and alike, f"{fqn}.{name} can't be {value!r}")


def _own_size(module: nn.Module, name: str) -> bool:
    return not name.startswith("_") and name in module.__dict__ and _size(module.__dict__[name])


def _sliced(tensor: Tensor, dims: Mapping[int, list[int]]) -> Tensor:
    result = tensor.detach()
    for dim, kept in dims.items():
        result = result.index_select(dim, torch.tensor(kept, dtype=torch.long, device=tensor.device))
    return result.clone() if result.data_ptr() == tensor.data_ptr() else result


def _new_tensor(old: Tensor, dims: Mapping[int, list[int]]) -> Tensor:
    value = _sliced(old, dims)
    if not isinstance(old, nn.Parameter):
        return value
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = _sliced(old.grad, dims)
    return new


class Surgery:
    """Cuts for some modules of a model; `apply` makes them all or none, `revert` puts the old tensors back.

    Tied tensors stay tied: each is cut once, and must be cut alike wherever it stands.

    Raises:
        ValueError: a cut does not fit its module, or a tensor that several modules hold is cut in one and not alike in
            another; nothing is changed.
    """

    def __init__(self, model: nn.Module, cuts: Mapping[str, Cut]) -> None:
        modules = dict(model.named_modules())
        self._cuts = [(modules[fqn], cut) for fqn, cut in cuts.items()]
        for fqn, cut in cuts.items():
            _checked(fqn, modules[fqn], cut)
        dims_of: dict[int, tuple[str, dict[int, list[int]]]] = {}
        for fqn, cut in cuts.items():
            for name, dims in cut.kept.items():
                here, key = f"{fqn}.{name}", id(_tensor(modules[fqn], name))
                other, same = dims_of.setdefault(key, (here, dims))
                require(same == dims, f"{other} and {here} are one tensor, and would be pruned differently")
        for fqn, module in modules.items():
            cut_here = cuts.get(fqn, Cut()).kept
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and id(tensor) in dims_of and name not in cut_here:
                    other = dims_of[id(tensor)][0]
                    raise ValueError(f"{other} would be pruned, and {fqn}.{name}, the same tensor, would not")
        self._undo: list[tuple[dict[str, Any], str, Any]] = []

    def apply(self) -> None:
        made: dict[int, Tensor] = {}
        for module, cut in self._cuts:
            for name, dims in cut.kept.items():
                old = _tensor(module, name)
                assert old is not None
                if id(old) not in made:
                    made[id(old)] = _new_tensor(old, dims)
        try:
            for module, cut in self._cuts:
                record = _composed(module, cut)
                for name in cut.kept:
                    held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
                    self._set(held, name, made[id(held[name])])
                for name, value in cut.attributes.items():
                    was = module.__dict__[name]
                    self._set(module.__dict__, name, tuple(value) if isinstance(was, tuple) else value)
                self._set(module.__dict__, PRUNED, record)
        except BaseException:
            self.revert()
            raise

    def _set(self, held: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((held, name, held.get(name, _ABSENT)))
        held[name] = value

    def revert(self) -> None:
        while self._undo:
            held, name, value = self._undo.pop()
            if value is _ABSENT:
                del held[name]
            else:
                held[name] = value


def _composed(module: nn.Module, cut: Cut) -> dict[str, Any]:
    """The module's record after a cut: relative to the module as its code builds it, however often it was pruned."""
    before = module.__dict__.get(PRUNED, {"tensors": {}, "attributes": {}})
    tensors, attributes = dict(before["tensors"]), dict(before["attributes"])
    for name, dims in cut.kept.items():
        tensor = _tensor(module, name)
        assert tensor is not None
        old = tensors.get(name, {"shape": list(tensor.shape), "kept": []})
        kept = {dim: indices for dim, indices in old["kept"]}
        for dim, indices in dims.items():
            kept[dim] = [kept[dim][i] for i in indices] if dim in kept else list(indices)
        tensors[name] = {"shape": old["shape"], "kept": [[dim, kept[dim]] for dim in sorted(kept)]}
    for name, value in cut.attributes.items():
        first = attributes.get(name, [plain(module.__dict__[name])])[0]
        attributes[name] = [first, plain(value)]
    return {"tensors": tensors, "attributes": attributes}


def carry(old: nn.Module | None, new: nn.Module) -> dict[str, Any] | None:
    """The record that a module must get when it takes a pruned one's place, if any."""
    return old.__dict__.get(PRUNED) if old is not None and PRUNED not in new.__dict__ else None


def surgery_plan(model: nn.Module) -> list[Entry]:
    """What was pruned from the model, by module, as JSON-serializable entries: those of kind "pruned" that
    :func:`save_model` writes. Each has `fqn`; `tensors`, by name, with the `shape` before and the `kept` indices as
    pairs [dimension, indices]; and `attributes`, by name, as [before, after]."""
    return [
        {"fqn": fqn, "kind": "pruned", **module.__dict__[PRUNED]}
        for fqn, module in model.named_modules()
        if PRUNED in module.__dict__
    ]


def surgery(model: nn.Module, plan: Iterable[Any]) -> Surgery:
    """The plan's entries of kind "pruned" as changes to a model as built; modules that are so already stay.

    Raises:
        ValueError: the plan is malformed or does not fit the model.
    """
    modules, cuts, seen = dict(model.named_modules()), dict[str, Cut](), set[str]()
    for entry in plan:
        check(entry)
        fqn = entry["fqn"]
        if entry["kind"] != "pruned":
            continue
        require(fqn not in seen, f"the plan prunes {fqn!r} twice")
        seen.add(fqn)
        require(fqn in modules, f"the model has no module {fqn!r}, which the plan prunes")
        record = {"tensors": entry["tensors"], "attributes": entry["attributes"]}
        if modules[fqn].__dict__.get(PRUNED) != record:
            cuts[fqn] = _cut(fqn, modules[fqn], entry)
    return Surgery(model, cuts)


def _cut(fqn: str, module: nn.Module, entry: Entry) -> Cut:
    require(PRUNED not in module.__dict__, f"{fqn!r} is pruned already, and differently")
    cut = Cut()
    for name, recorded in entry["tensors"].items():
        tensor = _tensor(module, name)
        shape = None if tensor is None else list(tensor.shape)
        require(
            shape == recorded["shape"], f"{fqn}.{name} is {shape} in the model, the plan prunes {recorded['shape']}"
        )
        cut.kept[name] = {dim: indices for dim, indices in recorded["kept"]}
    for name, (before, after) in entry["attributes"].items():
        require(_own_size(module, name), f"{fqn!r} ({type(module).__name__}) has no size {name!r} of its own")
        have = plain(module.__dict__[name])
        require(have == before, f"{fqn}.{name} is {have} in the model, the plan has {before} before pruning")
        cut.attributes[name] = after
    return cut


def replay_surgery(model: Model, plan: Iterable[Any]) -> Model:
    """Prune a model, in place, as another of the same architecture was: tensors are sliced and sizes set as the plan
    of :func:`surgery_plan` says. Its conversions (other kinds of entries) are left out.

    Returns:
        model; unchanged if anything raises.

    Raises:
        ValueError: the plan is malformed, or the model is not of the architecture that was pruned; the message names
            module, tensor and sizes.
    """
    if not isinstance(plan, list):
        raise ValueError(f"the plan is not a list: {plan!r}")
    surgery(model, plan).apply()
    return model
