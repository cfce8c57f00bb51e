"""A model's conversions as data: `describe` reads them off its modules, `replay` prepares the same changes to the same
model as it was built, leaving the new layers to be filled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._fuse import CHAINS, Chain, block_chains, may_have_chains, shortened
from bigmodel_ext._plan_schema import Entry, check, require
from bigmodel_ext._pruned import surgery_plan
from bigmodel_ext._surgery import Changes, Place, Survey, device_of, without_bias
from bigmodel_ext.nn import (
    Absorbed,
    BinaryCodedLinear,
    BlockSparseLinear,
    FusedDropout,
    Int8Conv2d,
    Int8Linear,
    Int8SemiSparseLinear,
    Int8SparseLinear,
    Int8WeightOnlyLinear,
    SemiSparseLinear,
    SparseConv2d,
    SparseLinear,
)
from bigmodel_ext.nn._compressed import Compressed
from bigmodel_ext.nn._conv import CompressedConv2d, conv_arguments
from bigmodel_ext.nn._linear import Activated
from bigmodel_ext.nn._pattern import Pattern

_CLASSES: dict[str, type[Compressed]] = {
    "int8_conv2d": Int8Conv2d,
    "sparse_conv2d": SparseConv2d,
    "int8_linear": Int8Linear,
    "int8_weight_only_linear": Int8WeightOnlyLinear,
    "binary_coded_linear": BinaryCodedLinear,
    "sparse_linear": SparseLinear,
    "int8_sparse_linear": Int8SparseLinear,
    "int8_semi_sparse_linear": Int8SemiSparseLinear,
    "block_sparse_linear": BlockSparseLinear,
    "semi_sparse_linear": SemiSparseLinear,
}


def describe(model: nn.Module) -> list[Entry]:
    """One entry for each module that is not as the model's code builds it, JSON-serializable; those of pruned modules
    first, so that a converted one may have two."""
    entries: list[Entry] = surgery_plan(model)
    for fqn, module in model.named_modules():
        if hasattr(type(module), CHAINS):
            chains = [chain.plan() for chain in getattr(type(module), CHAINS)]
            entries.append({"fqn": fqn, "kind": "fused_block", "chains": chains})
        else:
            entry = entry_of(module)
            if entry is not None:
                entries.append({"fqn": fqn, **entry})
    return entries


def entry_of(module: nn.Module) -> Entry | None:
    """A module's entry without its name; None if it is not a converted one."""
    if isinstance(module, Compressed):
        kind = next(kind for kind, cls in _CLASSES.items() if isinstance(module, cls))
        return {"kind": kind, **_shape_of(module)}
    if isinstance(module, FusedDropout):
        features, dtype = None, None
        if module.bias is not None:
            features, dtype = module.bias.shape[0], str(module.bias.dtype).removeprefix("torch.")
        p = float(module.p)
        return {
            "kind": "fused_dropout", "p": p, "activation": module.activation, "num_features": features, "dtype": dtype
        }  # fmt: skip
    if isinstance(module, Absorbed):
        return {"kind": "absorbed"}
    if type(module) is nn.Linear and module.bias is None:
        return {"kind": "linear_without_bias"}
    return None


def _shape_of(module: Compressed) -> Entry:
    entry: Entry
    if isinstance(module, CompressedConv2d):
        names: tuple[str, ...] = ("in_channels", "out_channels", "groups")
        entry = {"window": _conv_window(module)}
    else:
        names, entry = ("in_features", "out_features"), {}
    entry |= {name: getattr(module, name) for name in names}
    entry["bias"] = module.bias is not None
    if isinstance(module, Activated) and module.activation != "none":
        entry["activation"] = module.activation
    if module.coding != "none":
        entry["coding"] = module.coding
    if isinstance(module, Int8Linear) and module.input_scale is not None:
        entry["static_input"] = True
    if isinstance(module, BinaryCodedLinear):
        entry |= {"bits": module.bits, "group_size": module.group_size}
    elif isinstance(module, BlockSparseLinear):
        entry["blocksize"] = module.blocksize
    elif isinstance(module, Pattern):
        entry["panel"] = module.panel
    if isinstance(module, Pattern):
        entry["stored"] = module.col.shape[0]
    return entry


def _conv_window(conv: nn.Conv2d) -> list[Any]:
    """As JSON gives it back."""
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return [size if isinstance(size, str) else list(size) for size in sizes]


def replay(survey: Survey, plan: Any) -> tuple[Changes, dict[str, nn.Module]]:
    """The changes that bring a model as built to the plan's form, and the new modules by name. The model is only read;
    what the plan says of pruning has been done (`_pruned.surgery`), as conversions need the sizes it leaves.

    Raises:
        ValueError: the plan is malformed, or does not fit the model.
    """
    require(isinstance(plan, list), f"the plan is not a list: {plan!r}")
    by_name = {place.fqn: place for place in survey.places.values()}
    changes, new = Changes(), dict[str, nn.Module]()
    for entry in plan:
        check(entry)
    absorbed = {id(by_name[e["fqn"]].module) for e in plan if e["kind"] == "absorbed" and e["fqn"] in by_name}
    for entry in plan:
        fqn, kind = entry["fqn"], entry["kind"]
        if kind == "pruned":
            continue
        place = by_name.get(fqn)
        if place is None:
            raise ValueError(f"the model has no module {fqn!r}, which the file has as {kind}")
        if kind == "fused_block":
            _replay_block(survey, changes, place, entry, absorbed)
            continue
        require(fqn not in new, f"the plan names {fqn!r} twice")
        made = _MAKERS[kind](survey, place, entry)
        if made is not place.module:
            require(bool(place.holders), f"the model itself would have to be replaced by {kind}")
            new[fqn] = made.train(place.module.training)
            changes.replace(place, made)
    return changes, new


def _replay_block(survey: Survey, changes: Changes, place: Place, entry: Entry, absorbed: set[int]) -> None:
    owner, recorded = place.module, [Chain(**chain) for chain in entry["chains"]]
    found: Any
    found = "it is not a module whose forward can be fused"
    if may_have_chains(owner):
        found = block_chains(survey, owner, absorbed)
    if isinstance(found, str):
        raise ValueError(f"{place.fqn!r} can't be fused as it was when saved: {found}")
    form = [(c.dropout, c.activation, c.residual) for c in found[0]]
    wanted = [(c.dropout, c.activation, c.residual) for c in recorded]
    require(form == wanted, f"the forward of {place.fqn!r} has the chains {form}, the file {wanted}")
    changes.classes.append((owner, shortened(type(owner), found[1], recorded)))


def _require_kind(survey: Survey, place: Place, entry: Entry, dense: type[nn.Module]) -> None:
    """The model has the converted layer already, or a dense one that can become it."""
    old = place.module
    if type(old) is not _CLASSES[entry["kind"]]:
        reason = survey.why_not(place) if isinstance(old, dense) else f"it is a {type(old).__name__}"
        require(reason is None, f"{place.fqn!r} can't become {entry['kind']}: {reason}")


def _placed(old: nn.Module) -> dict[str, Any]:
    sample = next(old.parameters(), torch.empty(0, device=device_of(old)))
    return {"device": sample.device, "dtype": sample.dtype}


def coded_names(plan: list[Entry]) -> set[str]:
    """Names in the state dict that the plan's layers want entropy-coded in a file."""
    coded = (entry for entry in plan if "coding" in entry)
    return {f"{entry['fqn']}.{name}".lstrip(".") for entry in coded for name in _CLASSES[entry["kind"]].codable}


def _finished(layer: Compressed, old: nn.Module, entry: Entry) -> nn.Module:
    """layer, coded as the entry says, with its parameters' requires_grad as old's."""
    layer.coding = entry.get("coding", "none")
    layer.requires_grad_(next((p.requires_grad for p in old.parameters()), False))
    if isinstance(layer.bias, Tensor) and isinstance(old.bias, Tensor):
        layer.bias.requires_grad_(old.bias.requires_grad)
    return layer


def _conv(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    old = place.module
    _require_kind(survey, place, entry, nn.Conv2d)
    assert isinstance(old, nn.Conv2d)
    have = [old.in_channels, old.out_channels, old.groups, *_conv_window(old)]
    held = [entry["in_channels"], entry["out_channels"], entry["groups"], *entry["window"]]
    require(have == held, f"{place.fqn!r} is {have} in the model and {held} in the file")
    placed = {"bias": entry["bias"], **_placed(old)}
    if entry["kind"] == "int8_conv2d":
        return _finished(Int8Conv2d(*conv_arguments(old), **placed), old, entry)
    _require_room(entry, old.out_channels * math.prod((old.in_channels // old.groups, *old.kernel_size)))
    return _finished(_resized(SparseConv2d(*conv_arguments(old), **placed, panel=entry["panel"]), entry), old, entry)


def _linear(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    old, cls = place.module, _CLASSES[entry["kind"]]
    _require_kind(survey, place, entry, nn.Linear)
    assert isinstance(old, nn.Linear)
    n, k = entry["out_features"], entry["in_features"]
    require(
        (n, k) == (old.out_features, old.in_features),
        f"{place.fqn!r} is {old.out_features}x{old.in_features} in the model and {n}x{k} in the file",
    )
    placed = _placed(old)
    if cls is BlockSparseLinear:
        layer: Any = _blocks(entry, placed)
    elif cls in (SparseLinear, Int8SparseLinear):
        layer = _sparse(cls, entry, placed)
    elif cls is BinaryCodedLinear:
        layer = _binary_coded(entry, placed)
    elif cls is Int8Linear:
        layer = Int8Linear(k, n, entry["bias"], **placed, static_input=entry.get("static_input", False))
    else:
        layer = cls(k, n, entry["bias"], **placed)
    if isinstance(layer, Activated):
        layer.activation = entry.get("activation", "none")
    return _finished(layer, old, entry)


def _require_room(entry: Entry, most: int) -> None:
    panel, stored = entry["panel"], entry["stored"]
    require(1 <= panel <= 256, f"{entry['fqn']!r}: panel must be in [1, 256], got {panel}")
    require(stored <= most, f"{entry['fqn']!r}: at most {most} entries can be stored, got {stored}")


def _resized(layer: Pattern, entry: Entry) -> Pattern:
    layer.resize(entry["stored"])
    return layer


def _sparse(cls: type, entry: Entry, placed: dict[str, Any]) -> Pattern:
    n, k = entry["out_features"], entry["in_features"]
    _require_room(entry, n * (k if cls is SparseLinear else -(-k // 4)))
    kind = SparseLinear if cls is SparseLinear else Int8SparseLinear
    return _resized(kind(k, n, entry["bias"], **placed, panel=entry["panel"]), entry)


def _blocks(entry: Entry, placed: dict[str, Any]) -> Pattern:
    n, k, size, stored = (entry[name] for name in ("out_features", "in_features", "blocksize", "stored"))
    require(size in (16, 32, 64), f"{entry['fqn']!r}: blocksize must be 16, 32 or 64, got {size}")
    most = -(-n // size) * -(-k // size)
    require(stored <= most, f"{entry['fqn']!r}: at most {most} blocks can be stored, got {stored}")
    return _resized(BlockSparseLinear(k, n, entry["bias"], **placed, blocksize=size), entry)


def _binary_coded(entry: Entry, placed: dict[str, Any]) -> Compressed:
    n, k, code = entry["out_features"], entry["in_features"], {name: entry[name] for name in ("bits", "group_size")}
    try:
        return BinaryCodedLinear(k, n, entry["bias"], **placed, **code)
    except ValueError as error:
        raise ValueError(f"{entry['fqn']!r}: {error}") from error


def _without_bias(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    linear = place.module
    if type(linear) is not nn.Linear:
        raise ValueError(f"{place.fqn!r} is a {type(linear).__name__}, expected nn.Linear")
    return linear if linear.bias is None else without_bias(linear)


def _absorbed(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    stateless = not any(True for _ in place.module.state_dict())
    require(stateless, f"{place.fqn!r} is a {type(place.module).__name__}, expected an activation")
    return Absorbed()


def _fused_dropout(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    kinds = (nn.Dropout, FusedDropout)
    require(type(place.module) in kinds, f"{place.fqn!r} is a {type(place.module).__name__}, expected nn.Dropout")
    require(0.0 <= entry["p"] <= 1.0, f"{place.fqn!r}: p must be in [0, 1], got {entry['p']}")
    features, name = entry["num_features"], entry["dtype"]
    dtype = getattr(torch, name, None) if name is not None else None
    fits = (features is None) == (name is None) and (features is None or getattr(dtype, "is_floating_point", False))
    require(fits, f"{place.fqn!r}: num_features is {features!r} and dtype {name!r}")
    return FusedDropout(entry["p"], entry["activation"], features, device_of(survey.model), dtype)


_MAKERS: dict[str, Callable[[Survey, Place, Entry], nn.Module]] = {
    **{kind: _conv if issubclass(cls, CompressedConv2d) else _linear for kind, cls in _CLASSES.items()},
    "linear_without_bias": _without_bias,
    "absorbed": _absorbed,
    "fused_dropout": _fused_dropout,
}
