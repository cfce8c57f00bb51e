"""Attention heads as units. Which layers make queries, keys and values, and which of the module's attributes tell
sizes, is declared by `Heads`, or found where modules use common names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import nn

from bigmodel_ext.compress.prune.structured.units import Group, Size, Slice

_COUNTS = ("heads", "num_heads", "n_heads", "n_head", "num_attention_heads")
_KV_COUNTS = ("kv_heads", "num_kv_heads", "n_kv_heads", "num_key_value_heads")
_FUSED = ("qkv", "qkv_proj", "in_proj", "to_qkv", "c_attn", "query_key_value")
_APART = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"), ("q_lin", "k_lin", "v_lin"), ("self.query", "self.key", "self.value"),
    ("attention.query", "attention.key", "attention.value"),
)  # fmt: skip
_OUTPUTS = ("o_proj", "out_proj", "proj", "out", "o", "to_out", "wo", "out_lin", "c_proj", "dense", "output.dense")
_ROLES = ("heads", "kv_heads", "groups", "width", "kv_width")
_KNOWN = {
    **dict.fromkeys(_COUNTS, "heads"),
    **dict.fromkeys(_KV_COUNTS, "kv_heads"),
    **dict.fromkeys(("num_key_value_groups", "n_rep"), "groups"),
    **dict.fromkeys(("all_head_size", "inner_dim"), "width"),
}


@dataclass(frozen=True)
class Heads:
    """How an attention module is laid out. Features of heads are contiguous in the layers' outputs: head h of d is
    rows h * d to h * d + d, queries before keys before values where one layer makes all three.

    qkv: names, within the module ("query", "self.query"), of the layer that makes all three, or of the three; output:
    of the layer that takes the mixed values. heads and kv_heads (default: as many) count query and key/value heads.
    attributes: sizes that its forward reads, by name ("num_heads", "self.num_heads"): "heads", "kv_heads", "groups"
    (heads per kv_head), "width" (heads * d) or "kv_width"; where d itself is read it does not change.
    """

    qkv: str | tuple[str, str, str]
    output: str
    heads: int
    kv_heads: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kv = self.heads if self.kv_heads is None else self.kv_heads
        if self.heads < 1 or kv < 1 or self.heads % kv:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {kv}")
        unknown = [role for role in self.attributes.values() if role not in _ROLES]
        if unknown:
            raise ValueError(f"attributes must name one of {', '.join(_ROLES)} each, got {unknown[0]!r}")


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _first(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((n for n in names if isinstance(_at(module, n), nn.Linear)), None)


def _sizes(module: nn.Module, path: str) -> dict[str, int]:
    """The attributes with common names of a module's part, by name from the module."""
    found = vars(module.get_submodule(path)).items()
    return {f"{path}.{n}".strip("."): v for n, v in found if n in (*_KNOWN, "head_dim") and type(v) is int and v > 0}


def find_heads(module: nn.Module) -> Heads | None:
    """The module's layout if its layers and attributes have common names, else None."""
    if isinstance(module, nn.MultiheadAttention):
        return None
    output, fused = _first(module, _OUTPUTS), _first(module, _FUSED)
    apart = next((names for names in _APART if all(_first(module, (n,)) for n in names)), None)
    qkv = apart or fused
    if output is None or qkv is None:
        return None
    sizes = _sizes(module, "")
    if apart is not None and "." in apart[0]:
        sizes |= _sizes(module, apart[0].rpartition(".")[0])
    roles = {n: _KNOWN[n.rpartition(".")[2]] for n in sizes if n.rpartition(".")[2] in _KNOWN}
    heads = next((sizes[n] for n, role in roles.items() if role == "heads"), None)
    kv = next((sizes[n] for n, role in roles.items() if role == "kv_heads"), None)
    if heads is None:  # transformers' Llama keeps head_dim and reads the number of heads off the shapes
        d = sizes.get("head_dim")
        if d is None or apart is None:
            return None
        rows = [module.get_submodule(n).get_parameter("weight").shape for n in (output, apart[1])]
        heads, kv = rows[0][1] // d, rows[1][0] // d
    try:
        return Heads(qkv, output, heads, kv, roles)
    except ValueError:
        return None


def head_group(model: nn.Module, fqn: str, layout: Heads, kv_groups: bool = True) -> Group:
    """The module's heads as a group.

    kv_groups: a unit is a key/value head with all its query heads; else it is one query head, and as many go of each
    key/value head.

    Raises:
        ValueError: the layers or attributes are not as the layout says.
    """
    owner = model.get_submodule(fqn)
    kv = layout.kv_heads or layout.heads
    per = layout.heads // kv
    layers = [_linear(owner, fqn, n) for n in ((layout.qkv,) if isinstance(layout.qkv, str) else layout.qkv)]
    output = _linear(owner, fqn, layout.output)
    d, rest = divmod(output.in_features, layout.heads)
    parts = (layout.heads * d, kv * d, kv * d)
    have = tuple(layer.out_features for layer in layers)
    wanted = (sum(parts),) if len(layers) == 1 else parts
    if rest or have != wanted:
        raise ValueError(
            f"{fqn!r}: {layout.heads} heads and {kv} key/value heads of {output.in_features} features need layers of "
            f"{wanted} outputs, {layout.qkv} have {have}"
        )

    def rows(first: int, count: int, each: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(first + u * each * d, first + (u + 1) * each * d)) for u in range(count))

    if kv_groups:
        units = kv
        made = [rows(0, kv, per), rows(0, kv, 1), rows(0, kv, 1)]
    else:
        units = layout.heads
        made = [rows(0, units, 1), ((),) * units, ((),) * units]
    if len(layers) == 1:
        made = [_fused(made, (0, parts[0], parts[0] + parts[1]))]
    names = (layout.qkv,) if isinstance(layout.qkv, str) else layout.qkv
    slices, sizes = list[Slice](), list[Size]()
    for name, layer, index in zip(names, layers, made, strict=True):
        at = f"{fqn}.{name}".lstrip(".")
        slices.append(Slice(at, "weight", 0, index, "out"))
        if layer.bias is not None:
            slices.append(Slice(at, "bias", 0, index, "out"))
        sizes.append(Size(at, "out_features", Fraction(len(index[0]))))
    at = f"{fqn}.{layout.output}".lstrip(".")
    slices.append(Slice(at, "weight", 1, rows(0, units, per if kv_groups else 1), "in"))
    sizes += [
        Size(at, "in_features", Fraction(d * (per if kv_groups else 1))),
        *_attributes(owner, fqn, layout, d, kv_groups),
    ]
    return Group(fqn, "head", units, tuple(slices), tuple(sizes), blocks=1 if kv_groups else kv)


def _fused(made: list[tuple[tuple[int, ...], ...]], starts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Each unit's rows of three layers as rows of the one that makes all three."""
    units = range(len(made[0]))
    return tuple(tuple(start + i for start, index in zip(starts, made, strict=True) for i in index[u]) for u in units)


def _linear(owner: nn.Module, fqn: str, name: str) -> nn.Linear:
    layer = _at(owner, name)
    if type(layer) is not nn.Linear:
        raise ValueError(f"{fqn!r} has no nn.Linear {name!r} (it is {type(layer).__name__})")
    return layer


def _attributes(owner: nn.Module, fqn: str, layout: Heads, d: int, kv_groups: bool) -> list[Size]:
    kv = layout.kv_heads or layout.heads
    per = layout.heads // kv
    values = {"heads": layout.heads, "kv_heads": kv, "groups": per, "width": layout.heads * d, "kv_width": kv * d}
    if kv_groups:
        less = {"heads": Fraction(per), "kv_heads": Fraction(1), "width": Fraction(per * d), "kv_width": Fraction(d)}
    else:
        less = {"heads": Fraction(1), "groups": Fraction(1, kv), "width": Fraction(d)}
    sizes = []
    for path, role in layout.attributes.items():
        part, _, name = path.rpartition(".")
        have = vars(_at(owner, part) or owner).get(name)
        if have != values[role]:
            raise ValueError(f"{fqn}.{path} is {have}, expected {values[role]} ({role})")
        if role in less:
            sizes.append(Size(f"{fqn}.{part}".strip("."), name, less[role]))
    return sizes


def head_groups(
    model: nn.Module, declared: Mapping[str, Heads], kv_groups: bool
) -> tuple[dict[str, Group], dict[str, str]]:
    """The heads of the model's attention modules as groups, and why others' can't be, by name of the module.

    Raises:
        ValueError: a module is not as declared.
    """
    groups, reasons = dict[str, Group](), dict[str, str]()
    for fqn, module in model.named_modules():
        layout = declared.get(fqn) or find_heads(module)
        if layout is None:
            continue
        try:
            groups[fqn] = head_group(model, fqn, layout, kv_groups)
        except ValueError as error:
            if fqn in declared:
                raise
            reasons[fqn] = str(error)
    return groups, reasons
