"""What an entry of a plan has: the fields of each kind of conversion, and the check of one read from a file."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]

_LINEAR = {"in_features": int, "out_features": int, "bias": bool}
_SPARSE = {**_LINEAR, "panel": int, "stored": int}
# The window is kernel_size, stride, padding (a string, or two numbers) and dilation, as nn.Conv2d has them.
_CONV = {"in_channels": int, "out_channels": int, "groups": int, "bias": bool, "window": list}
_FIELDS: dict[str, dict[str, Any]] = {
    "int8_conv2d": _CONV,
    "sparse_conv2d": {**_CONV, "panel": int, "stored": int},
    "int8_linear": _LINEAR,
    "int8_weight_only_linear": _LINEAR,
    "binary_coded_linear": {**_LINEAR, "bits": int, "group_size": int},
    "sparse_linear": _SPARSE,
    "int8_sparse_linear": _SPARSE,
    "block_sparse_linear": {**_LINEAR, "blocksize": int, "stored": int},
    "semi_sparse_linear": _LINEAR,
    "int8_semi_sparse_linear": _LINEAR,
    "linear_without_bias": {},
    "absorbed": {},
    "fused_dropout": {"p": float, "activation": str, "num_features": (int, type(None)), "dtype": (str, type(None))},
    "fused_block": {"chains": list},
    "pruned": {"tensors": dict, "attributes": dict},
}
# These may also have an activation.
_ACTIVATED = (
    "binary_coded_linear", "int8_linear", "int8_weight_only_linear", "sparse_linear", "int8_sparse_linear",
    "int8_semi_sparse_linear",
)  # fmt: skip
_CODED = ("int8_conv2d", "int8_linear", "int8_sparse_linear")  # these may have a coding
_CHAIN = {
    "dropout": str,
    "activation": str,
    "linear": (str, type(None)),
    "absorbed": (str, type(None)),
    "residual": bool,
}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_fields(entry: Any, fields: dict[str, Any], what: str) -> None:
    require(isinstance(entry, dict), f"{what} is not an object: {entry!r}")
    require(set(entry) == set(fields), f"{what} has the fields {sorted(entry)}, expected {sorted(fields)}")
    for name, kinds in fields.items():
        value, allowed = entry[name], kinds if isinstance(kinds, tuple) else (kinds,)
        require(type(value) in allowed, f"{what}: {name} is {value!r}")
        require(type(value) is not int or value >= 0, f"{what}: {name} is {value!r}")


def check(entry: Any) -> None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    require(isinstance(kind, str) and kind in _FIELDS, f"unknown kind of conversion: {entry!r}")
    fields = {"fqn": str, "kind": str, **_FIELDS[str(kind)]}
    if kind in _ACTIVATED and "activation" in entry:
        fields["activation"] = str
    if kind in _CODED and "coding" in entry:
        fields["coding"] = str
    if kind == "int8_linear" and "static_input" in entry:
        fields["static_input"] = bool
    _check_fields(entry, fields, f"plan entry {entry.get('fqn')!r}")
    for chain in entry.get("chains", ()):
        _check_fields(chain, _CHAIN, f"a chain of {entry['fqn']!r}")
    if kind == "pruned":
        _check_pruned(entry)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_pruned(entry: Entry) -> None:
    for name, tensor in entry["tensors"].items():
        what = f"plan entry {entry['fqn']!r}, tensor {name!r}"
        _check_fields(tensor, {"shape": list, "kept": list}, what)
        pairs = all(isinstance(p, list) and len(p) == 2 and type(p[0]) is int and _sizes(p[1]) for p in tensor["kept"])
        require(_sizes(tensor["shape"]) and pairs, f"{what} is malformed")
    for name, change in entry["attributes"].items():
        pair = isinstance(change, list) and len(change) == 2
        require(
            pair and all(type(v) is int or _sizes(v) for v in change),
            f"plan entry {entry['fqn']!r}: attribute {name!r} is {change!r}, expected [before, after]",
        )
