"""A model's conversions as data: `describe` reads them off its modules, `replay` prepares the same changes to the same
model as it was built, leaving the new layers to be filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bigmodel_ext._fuse import CHAINS, Chain, block_chains, may_have_chains, shortened
from bigmodel_ext._surgery import Changes, Place, Survey, device_of, without_bias
from bigmodel_ext.nn import (
    Absorbed,
    BlockSparseLinear,
    FusedDropout,
    Int8Linear,
    Int8SparseLinear,
    SemiSparseLinear,
    SparseLinear,
)
from bigmodel_ext.nn._linear import CompressedLinear

Entry = dict[str, Any]

_LINEAR = {"in_features": int, "out_features": int, "bias": bool}
_SPARSE = {**_LINEAR, "panel": int, "stored": int}
_FIELDS: dict[str, dict[str, Any]] = {
    "int8_linear": _LINEAR,
    "sparse_linear": _SPARSE,
    "int8_sparse_linear": _SPARSE,
    "block_sparse_linear": {**_LINEAR, "blocksize": int, "stored": int},
    "semi_sparse_linear": _LINEAR,
    "linear_without_bias": {},
    "absorbed": {},
    "fused_dropout": {"p": float, "activation": str, "num_features": (int, type(None)), "dtype": (str, type(None))},
    "fused_block": {"chains": list},
}
_CHAIN = {
    "dropout": str,
    "activation": str,
    "linear": (str, type(None)),
    "absorbed": (str, type(None)),
    "residual": bool,
}
_CLASSES: dict[str, type[CompressedLinear]] = {
    "int8_linear": Int8Linear,
    "sparse_linear": SparseLinear,
    "int8_sparse_linear": Int8SparseLinear,
    "block_sparse_linear": BlockSparseLinear,
    "semi_sparse_linear": SemiSparseLinear,
}


def describe(model: nn.Module) -> list[Entry]:
    """One entry for each module that is not as the model's code builds it, JSON-serializable."""
    entries: list[Entry] = []
    for fqn, module in model.named_modules():
        if hasattr(type(module), CHAINS):
            chains = [chain.plan() for chain in getattr(type(module), CHAINS)]
            entries.append({"fqn": fqn, "kind": "fused_block", "chains": chains})
        else:
            entry = _describe(module)
            if entry is not None:
                entries.append({"fqn": fqn, **entry})
    return entries


def _describe(module: nn.Module) -> Entry | None:
    if isinstance(module, CompressedLinear):
        kind = next(kind for kind, cls in _CLASSES.items() if isinstance(module, cls))
        entry = {
            "kind": kind,
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }
        if isinstance(module, (SparseLinear, Int8SparseLinear)):
            entry |= {"panel": module.panel, "stored": module.col.shape[0]}
        elif isinstance(module, BlockSparseLinear):
            entry |= {"blocksize": module.blocksize, "stored": module.col.shape[0]}
        return entry
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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_fields(entry: Any, fields: dict[str, Any], what: str) -> None:
    _require(isinstance(entry, dict), f"{what} is not an object: {entry!r}")
    _require(set(entry) == set(fields), f"{what} has the fields {sorted(entry)}, expected {sorted(fields)}")
    for name, kinds in fields.items():
        value, allowed = entry[name], kinds if isinstance(kinds, tuple) else (kinds,)
        _require(type(value) in allowed, f"{what}: {name} is {value!r}")
        _require(type(value) is not int or value >= 0, f"{what}: {name} is {value!r}")


def _check(entry: Any) -> None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    _require(isinstance(kind, str) and kind in _FIELDS, f"unknown kind of conversion: {entry!r}")
    _check_fields(entry, {"fqn": str, "kind": str, **_FIELDS[str(kind)]}, f"plan entry {entry.get('fqn')!r}")
    for chain in entry.get("chains", ()):
        _check_fields(chain, _CHAIN, f"a chain of {entry['fqn']!r}")


def replay(survey: Survey, plan: Any) -> tuple[Changes, dict[str, nn.Module]]:
    """The changes that bring a model as built to the plan's form, and the new modules by name. The model is only read.

    Raises:
        ValueError: the plan is malformed, or does not fit the model.
    """
    _require(isinstance(plan, list), f"the plan is not a list: {plan!r}")
    by_name = {place.fqn: place for place in survey.places.values()}
    changes, new = Changes(), dict[str, nn.Module]()
    for entry in plan:
        _check(entry)
        fqn, kind = entry["fqn"], entry["kind"]
        place = by_name.get(fqn)
        if place is None:
            raise ValueError(f"the model has no module {fqn!r}, which the file has as {kind}")
        if kind == "fused_block":
            _replay_block(survey, changes, place, entry)
            continue
        _require(fqn not in new, f"the plan names {fqn!r} twice")
        made = _MAKERS[kind](survey, place, entry)
        if made is not place.module:
            _require(bool(place.holders), f"the model itself would have to be replaced by {kind}")
            new[fqn] = made.train(place.module.training)
            changes.replace(place, made)
    return changes, new


def _replay_block(survey: Survey, changes: Changes, place: Place, entry: Entry) -> None:
    owner, recorded = place.module, [Chain(**chain) for chain in entry["chains"]]
    found = block_chains(survey, owner) if may_have_chains(owner) else "it is not a module whose forward can be fused"
    if isinstance(found, str):
        raise ValueError(f"{place.fqn!r} can't be fused as it was when saved: {found}")
    form = [(c.dropout, c.activation, c.residual) for c in found[0]]
    wanted = [(c.dropout, c.activation, c.residual) for c in recorded]
    _require(form == wanted, f"the forward of {place.fqn!r} has the chains {form}, the file {wanted}")
    changes.classes.append((owner, shortened(type(owner), found[1], recorded)))


def _linear(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    old, cls = place.module, _CLASSES[entry["kind"]]
    if type(old) is not cls:
        reason = survey.why_not_linear(place) if isinstance(old, nn.Linear) else f"it is a {type(old).__name__}"
        _require(reason is None, f"{place.fqn!r} can't become {entry['kind']}: {reason}")
    assert isinstance(old, nn.Linear)
    n, k = entry["out_features"], entry["in_features"]
    _require(
        (n, k) == (old.out_features, old.in_features),
        f"{place.fqn!r} is {old.out_features}x{old.in_features} in the model and {n}x{k} in the file",
    )
    sample = next(old.parameters(), torch.empty(0, device=device_of(old)))
    placed: dict[str, Any] = {"device": sample.device, "dtype": sample.dtype}
    if cls is BlockSparseLinear:
        layer: CompressedLinear = _blocks(entry, placed)
    elif cls in (SparseLinear, Int8SparseLinear):
        layer = _sparse(cls, entry, placed)
    else:
        layer = cls(k, n, entry["bias"], **placed)
    layer.requires_grad_(sample.requires_grad)
    if layer.bias is not None and old.bias is not None:
        layer.bias.requires_grad_(old.bias.requires_grad)
    return layer


def _sparse(cls: type[CompressedLinear], entry: Entry, placed: dict[str, Any]) -> CompressedLinear:
    n, k, panel, stored = (entry[name] for name in ("out_features", "in_features", "panel", "stored"))
    most = n * (k if cls is SparseLinear else -(-k // 4))
    _require(1 <= panel <= 256, f"{entry['fqn']!r}: panel must be in [1, 256], got {panel}")
    _require(stored <= most, f"{entry['fqn']!r}: at most {most} entries can be stored, got {stored}")
    layer = (SparseLinear if cls is SparseLinear else Int8SparseLinear)(k, n, entry["bias"], **placed, panel=panel)
    layer.resize(stored)
    return layer


def _blocks(entry: Entry, placed: dict[str, Any]) -> CompressedLinear:
    n, k, size, stored = (entry[name] for name in ("out_features", "in_features", "blocksize", "stored"))
    _require(size in (16, 32, 64), f"{entry['fqn']!r}: blocksize must be 16, 32 or 64, got {size}")
    most = -(-n // size) * -(-k // size)
    _require(stored <= most, f"{entry['fqn']!r}: at most {most} blocks can be stored, got {stored}")
    layer = BlockSparseLinear(k, n, entry["bias"], **placed, blocksize=size)
    layer.resize(stored)
    return layer


def _without_bias(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    linear = place.module
    if type(linear) is not nn.Linear:
        raise ValueError(f"{place.fqn!r} is a {type(linear).__name__}, expected nn.Linear")
    return linear if linear.bias is None else without_bias(linear)


def _absorbed(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    stateless = not any(True for _ in place.module.state_dict())
    _require(stateless, f"{place.fqn!r} is a {type(place.module).__name__}, expected an activation")
    return Absorbed()


def _fused_dropout(survey: Survey, place: Place, entry: Entry) -> nn.Module:
    kinds = (nn.Dropout, FusedDropout)
    _require(type(place.module) in kinds, f"{place.fqn!r} is a {type(place.module).__name__}, expected nn.Dropout")
    _require(0.0 <= entry["p"] <= 1.0, f"{place.fqn!r}: p must be in [0, 1], got {entry['p']}")
    features, name = entry["num_features"], entry["dtype"]
    dtype = getattr(torch, name, None) if name is not None else None
    fits = (features is None) == (name is None) and (features is None or getattr(dtype, "is_floating_point", False))
    _require(fits, f"{place.fqn!r}: num_features is {features!r} and dtype {name!r}")
    return FusedDropout(entry["p"], entry["activation"], features, device_of(survey.model), dtype)


_MAKERS: dict[str, Callable[[Survey, Place, Entry], nn.Module]] = {
    **dict.fromkeys(_CLASSES, _linear),
    "linear_without_bias": _without_bias,
    "absorbed": _absorbed,
    "fused_dropout": _fused_dropout,
}
