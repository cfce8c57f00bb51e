"""What each kind of layer has to do with channels that come or go: which of its tensors' slices and which sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from torch import nn

from bigmodel_ext.compress.prune.structured.units import BATCH_NORMS, CONVS, Size, Slice

FEATURE_NORMS = (nn.LayerNorm, nn.RMSNorm)
_AFFINE = ("weight", "bias", "running_mean", "running_var")


@dataclass
class Part:
    """A module's part in a group. couplings: (width, channel of each root): roots whose channels are the same modulo
    width go together; wide: units are features of a residual stream, which norms look at as a whole."""

    slices: list[Slice]
    sizes: list[Size]
    couplings: list[tuple[int, list[int]]] = field(default_factory=list)
    exact: bool = True
    wide: bool = False


def part_of(module: nn.Module, fqn: str, out: bool, index: list[list[int]]) -> Part | str:
    """One module's part in a group; or why it can't be pruned."""
    indices = tuple(tuple(i) for i in index)
    each = Fraction(max(map(len, index)))

    def held(names: tuple[str, ...], dim: int, role: str) -> list[Slice]:
        return [Slice(fqn, n, dim, indices, role) for n in names if getattr(module, n, None) is not None]

    if isinstance(module, nn.Parameter):
        owner, _, name = fqn.rpartition(".")
        dim = max((d for d, s in enumerate(module.shape) if s > 1), default=0)
        return Part([Slice(owner, name, dim, indices, "with")], [], wide=True)
    if type(module) is nn.Linear:
        if out:
            return Part(held(("weight", "bias"), 0, "out"), [Size(fqn, "out_features", each)])
        return Part(held(("weight",), 1, "in"), [Size(fqn, "in_features", each)])
    if type(module) in CONVS:
        return _conv_part(module, fqn, out, index)
    if type(module) in BATCH_NORMS:
        return Part(held(_AFFINE, 0, "with"), [Size(fqn, "num_features", each)])
    if type(module) is nn.GroupNorm:
        coupling = [(module.num_channels // module.num_groups, [i for group in index for i in group])]
        return Part(held(_AFFINE, 0, "with"), [Size(fqn, "num_channels", each)], coupling, exact=False)
    if type(module) in FEATURE_NORMS:
        shape: Any = module.normalized_shape
        if len(shape) != 1:
            return f"{fqn!r} normalizes over {shape}"
        return Part(held(("weight", "bias"), 0, "with"), [Size(fqn, "normalized_shape", each, 0)], wide=True)
    if type(module) is nn.Embedding:
        return Part(held(("weight",), 1, "out"), [Size(fqn, "embedding_dim", each)], wide=True)
    if type(module) is nn.PReLU:
        if module.num_parameters == 1:
            return Part([], [])
        return Part(held(("weight",), 0, "with"), [Size(fqn, "num_parameters", each)])
    if module.state_dict():
        return f"{fqn!r} is a {type(module).__name__}, which can't be pruned (conversions come after pruning)"
    return Part([], [])


def _conv_part(conv: Any, fqn: str, out: bool, index: list[list[int]]) -> Part | str:
    groups, each = conv.groups, Fraction(max(map(len, index)))
    indices = tuple(tuple(i) for i in index)
    flat = [i for unit in index for i in unit]
    biases = [Slice(fqn, "bias", 0, indices, "out")] if conv.bias is not None else []
    if groups == 1:
        if out:
            return Part([Slice(fqn, "weight", 0, indices, "out"), *biases], [Size(fqn, "out_channels", each)])
        return Part([Slice(fqn, "weight", 1, indices, "in")], [Size(fqn, "in_channels", each)])
    if groups == conv.in_channels == conv.out_channels:
        sizes = [Size(fqn, name, each) for name in ("in_channels", "out_channels", "groups")]
        return Part([replace(s, role="with") for s in (Slice(fqn, "weight", 0, indices, "with"), *biases)], sizes)
    if out:
        coupling = (conv.out_channels // groups, flat)
        return Part([Slice(fqn, "weight", 0, indices, "out"), *biases], [Size(fqn, "out_channels", each)], [coupling])
    width = conv.in_channels // groups
    local = tuple(tuple(sorted({i % width for i in unit})) for unit in index)
    return Part([Slice(fqn, "weight", 1, local, "in")], [Size(fqn, "in_channels", each)], [(width, flat)])


def units_of(size: int, couplings: list[tuple[int, list[int]]]) -> list[list[int]]:
    """Roots 0..size-1 joined where a grouped layer needs the same place of each of its groups to go together."""
    leader = list(range(size))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for width, channel_of_root in couplings:
        if len(channel_of_root) != size:
            return []
        first: dict[int, int] = {}
        for root, channel in enumerate(channel_of_root):
            leader[find(root)] = find(first.setdefault(channel % width, root))
    units: dict[int, list[int]] = {}
    for i in range(size):
        units.setdefault(find(i), []).append(i)
    return list(units.values()) if len({len(u) for u in units.values()}) == 1 else []
