"""Which channels and neurons of a model depend on each other: torch-pruning's dependency graph (Fang et al. 2023,
"DepGraph: Towards Any Structural Pruning") read as groups of units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.prune.structured.units import BATCH_NORMS, CONVS, Group, Size, Slice, coupled

_FEATURE_NORMS = (nn.LayerNorm, nn.RMSNorm)
_AFFINE = ("weight", "bias", "running_mean", "running_var")


def torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            "structure-aware pruning needs torch-pruning: pip install 'bigmodel_ext[compress]' (or torch-pruning)"
        ) from error
    return torch_pruning


@dataclass
class Graph:
    """groups by name; why the model's other layers can't be pruned, by name; how often each layer's weight is applied
    in one call with the example inputs (positions x batch); the torch-pruning groups that ours were read from; and the
    BatchNorm that alone takes each convolution's output."""

    groups: dict[str, Group] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    sources: dict[str, tuple[Any, list[list[int]]]] = field(default_factory=dict)
    norm_after: dict[str, str] = field(default_factory=dict)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model's modes, hooks and requires_grad and torch's random state are as before."""
    modes = [(m, m.training) for m in model.modules()]
    hooks = [(m, m._forward_hooks.copy()) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, before in hooks:
                module._forward_hooks.clear()
                module._forward_hooks.update(before)
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)


def call(model: nn.Module, example_inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None = None) -> Any:
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, (tuple, list)) else model(example_inputs)


def _counted(calls: dict[str, int], fqn: str, layer: Any, args: Any, output: Tensor) -> Tensor | None:
    """A forward hook. A linear layer of three and more dimensions gives a view, whose autograd node an in-place
    activation would replace, and with it the layer would vanish from the graph: then a copy goes on."""
    features = layer.out_channels if isinstance(layer, CONVS) else layer.out_features
    calls[fqn] = calls.get(fqn, 0) + output.numel() // features
    return output.clone() if output._is_view() else None


def trace(model: nn.Module, example_inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None = None) -> Graph:
    """The model's groups, from one call with the example inputs; the model is left as it was.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: the call raises, or the graph can't be told from it.
    """
    tp, graph = torch_pruning(), Graph()
    with as_it_was(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.requires_grad_(True)
        for fqn, module in model.named_modules():
            if type(module) in (nn.Linear, *CONVS):
                module.register_forward_hook(partial(_counted, graph.calls, fqn))
        try:
            dg = tp.DependencyGraph().build_dependency(
                model.eval(), example_inputs, forward_fn=lambda m, x: call(m, x, forward_fn), verbose=False
            )
            found = list(dg.get_all_groups(root_module_types=(*CONVS, nn.Linear, nn.Embedding)))
        except Exception as error:  # whatever user code or the tracer raises
            shown = f"{type(error).__name__}: {error}"
            raise ValueError(f"the dependencies of {type(model).__name__} can't be traced ({shown})") from error
    for group in found:
        _read(graph, model, dg, group)
    seen = {dg._module2name[m] for m in dg.module2node if m in dg._module2name}
    lost = "the way of its outputs can't be followed"
    graph.reasons.update({fqn: lost for fqn in graph.calls if fqn not in seen})
    _find_norms(graph, dg)
    return graph


def _find_norms(graph: Graph, dg: Any) -> None:
    names = dg._module2name
    for module, node in dg.module2node.items():
        if isinstance(module, CONVS) and len(node.outputs) == 1 and isinstance(node.outputs[0].module, BATCH_NORMS):
            graph.norm_after[names[module]] = names[node.outputs[0].module]


@dataclass
class _Part:
    """A module's part in a group. couplings: (width, channel of each root): roots whose channels are the same modulo
    width go together; wide: units are features of a residual stream, which norms look at as a whole."""

    slices: list[Slice]
    sizes: list[Size]
    couplings: list[tuple[int, list[int]]] = field(default_factory=list)
    exact: bool = True
    wide: bool = False


def _read(graph: Graph, model: nn.Module, dg: Any, found: Any) -> None:
    root = dg._module2name[found[0].dep.target.module]
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    parts = []
    for item in found:
        part = _item(dg, names, item, len(found[0].idxs))
        if isinstance(part, str):
            graph.reasons[root] = part
            return
        parts.append(part)
    roles = {s.role for part in parts for s in part.slices}
    units = _units(len(found[0].idxs), [c for part in parts for c in part.couplings])
    if not {"in", "out"} <= roles:
        graph.reasons[root] = "no layer that takes its outputs was found"
    elif len(units) < 2:
        graph.reasons[root] = "its outputs all depend on each other"
    else:
        graph.groups[root] = _group(model, root, parts, units)
        graph.sources[root] = (found, units)


def _group(model: nn.Module, root: str, parts: list[_Part], units: list[list[int]]) -> Group:
    slices = tuple(s for part in parts for s in part.slices)
    convs = any(s.role == "out" and isinstance(model.get_submodule(s.fqn), CONVS) for s in slices)
    kind = "width" if any(part.wide for part in parts) else "channel" if convs else "neuron"
    sizes = [
        Size(size.fqn, size.name, size.per_unit * len(units[0]), size.item) for part in parts for size in part.sizes
    ]
    exact = all(part.exact and not part.wide for part in parts)
    return coupled(Group(root, kind, len(units), slices, tuple(sizes), exact=exact), units)


def _item(dg: Any, names: dict[int, str], item: Any, size: int) -> _Part | str:
    """An item of a torch-pruning group; or why the group can't be pruned."""
    node, out = item.dep.target, dg.is_out_channel_pruning_fn(item.dep.handler)
    if any(root is None for root in item.root_idxs):
        return "its outputs are used in a way that the graph does not follow"
    if (out and not node.outputs) or type(node.module).__name__ == "_OutputOp":
        return "its outputs are the model's"
    index: list[list[int]] = [[] for _ in range(size)]
    for i, root in zip(item.idxs, item.root_idxs, strict=True):
        index[root].append(i)
    module = node.module
    fqn = names[id(module)] if isinstance(module, nn.Parameter) else dg._module2name.get(module)
    if isinstance(module, nn.Parameter):
        owner = dg.model.get_submodule(fqn.rpartition(".")[0])
        if type(owner).__module__.startswith("bigmodel_ext.nn"):
            return f"{fqn!r} belongs to a {type(owner).__name__}: prune before converting"
        if type(owner) in _FEATURE_NORMS:  # nn.RMSNorm: torch-pruning knows its weight only
            module, fqn = owner, fqn.rpartition(".")[0]
    return _Part([], []) if fqn is None else _part(module, fqn, out, index)


def _part(module: nn.Module, fqn: str, out: bool, index: list[list[int]]) -> _Part | str:
    """One module's part in a group; or why it can't be pruned."""
    indices = tuple(tuple(i) for i in index)
    each = Fraction(max(map(len, index)))

    def held(names: tuple[str, ...], dim: int, role: str) -> list[Slice]:
        return [Slice(fqn, n, dim, indices, role) for n in names if getattr(module, n, None) is not None]

    if isinstance(module, nn.Parameter):
        owner, _, name = fqn.rpartition(".")
        dim = max((d for d, s in enumerate(module.shape) if s > 1), default=0)
        return _Part([Slice(owner, name, dim, indices, "with")], [], wide=True)
    if type(module) is nn.Linear:
        if out:
            return _Part(held(("weight", "bias"), 0, "out"), [Size(fqn, "out_features", each)])
        return _Part(held(("weight",), 1, "in"), [Size(fqn, "in_features", each)])
    if type(module) in CONVS:
        return _conv_part(module, fqn, out, index)
    if type(module) in BATCH_NORMS:
        return _Part(held(_AFFINE, 0, "with"), [Size(fqn, "num_features", each)])
    if type(module) is nn.GroupNorm:
        coupling = [(module.num_channels // module.num_groups, [i for group in index for i in group])]
        return _Part(held(_AFFINE, 0, "with"), [Size(fqn, "num_channels", each)], coupling, exact=False)
    if type(module) in _FEATURE_NORMS:
        if len(module.normalized_shape) != 1:  # type: ignore[arg-type]
            return f"{fqn!r} normalizes over {module.normalized_shape}"
        return _Part(held(("weight", "bias"), 0, "with"), [Size(fqn, "normalized_shape", each, 0)], wide=True)
    if type(module) is nn.Embedding:
        return _Part(held(("weight",), 1, "out"), [Size(fqn, "embedding_dim", each)], wide=True)
    if type(module) is nn.PReLU:
        if module.num_parameters == 1:
            return _Part([], [])
        return _Part(held(("weight",), 0, "with"), [Size(fqn, "num_parameters", each)])
    if module.state_dict():
        return f"{fqn!r} is a {type(module).__name__}, which can't be pruned (conversions come after pruning)"
    return _Part([], [])


def _conv_part(conv: Any, fqn: str, out: bool, index: list[list[int]]) -> _Part | str:
    groups, each = conv.groups, Fraction(max(map(len, index)))
    indices = tuple(tuple(i) for i in index)
    flat = [i for unit in index for i in unit]
    biases = [Slice(fqn, "bias", 0, indices, "out")] if conv.bias is not None else []
    if groups == 1:
        if out:
            return _Part([Slice(fqn, "weight", 0, indices, "out"), *biases], [Size(fqn, "out_channels", each)])
        return _Part([Slice(fqn, "weight", 1, indices, "in")], [Size(fqn, "in_channels", each)])
    if groups == conv.in_channels == conv.out_channels:
        sizes = [Size(fqn, name, each) for name in ("in_channels", "out_channels", "groups")]
        return _Part([replace(s, role="with") for s in (Slice(fqn, "weight", 0, indices, "with"), *biases)], sizes)
    if out:
        coupling = (conv.out_channels // groups, flat)
        return _Part([Slice(fqn, "weight", 0, indices, "out"), *biases], [Size(fqn, "out_channels", each)], [coupling])
    width = conv.in_channels // groups
    local = tuple(tuple(sorted({i % width for i in unit})) for unit in index)
    return _Part([Slice(fqn, "weight", 1, local, "in")], [Size(fqn, "in_channels", each)], [(width, flat)])


def _units(size: int, couplings: list[tuple[int, list[int]]]) -> list[list[int]]:
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
