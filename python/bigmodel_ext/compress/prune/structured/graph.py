"""Which channels and neurons of a model depend on each other: torch-pruning's dependency graph (Fang et al. 2023,
"DepGraph: Towards Any Structural Pruning") read as groups of units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.prune.structured.parts import FEATURE_NORMS, Part, part_of, units_of
from bigmodel_ext.compress.prune.structured.units import BATCH_NORMS, CONVS, Group, Size, coupled


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
    hooks = [(held, held.copy()) for m in model.modules() for held in (m._forward_hooks, m._forward_pre_hooks)]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for held, before in hooks:
                held.clear()
                held.update(before)
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)


def tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors in a model's outputs: of tuples, lists and dicts, in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (dict, tuple, list)):
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(value)


def call(model: nn.Module, example_inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None = None) -> Any:
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, (tuple, list)) else model(example_inputs)


@dataclass
class _Watch:
    """What is done to layers while the model is traced: calls are counted; a linear layer's output of three and more
    dimensions is a view, whose autograd node an in-place activation would replace, and with it the layer would vanish
    from the graph, so a copy goes on; and attention, which is known, is cut out between the layers that make its heads,
    whose outputs are taken for the model's, and the one that reads them."""

    calls: dict[str, int] = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)

    def see(self, fqn: str, makes_heads: bool, layer: Any, args: Any, output: Tensor) -> Tensor:
        features = layer.out_channels if isinstance(layer, CONVS) else layer.out_features
        self.calls[fqn] = self.calls.get(fqn, 0) + output.numel() // features
        output = output.clone() if output._is_view() else output
        if makes_heads:
            self.ends.append(output)
        return output

    def hook(self, model: nn.Module, heads: Mapping[str, Group]) -> None:
        made = {fqn for group in heads.values() for fqn in group.layers("out")}
        read = {fqn for group in heads.values() for fqn in group.layers("in")}
        for fqn, module in model.named_modules():
            if type(module) in (nn.Linear, *CONVS):
                module.register_forward_hook(partial(self.see, fqn, fqn in made))
            if fqn in read:
                module.register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:]))


def trace(
    model: nn.Module,
    example_inputs: Any,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    heads: Mapping[str, Group] | None = None,
) -> Graph:
    """The model's groups, from one call with the example inputs, those of its heads (which are given) among them; the
    model is left as it was.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: the call raises, or the graph can't be told from it.
    """
    tp, graph, watch = torch_pruning(), Graph(), _Watch()
    heads = heads or {}

    def forward(model: nn.Module, inputs: Any) -> list[Tensor]:
        return [t for t in (*tensors(call(model, inputs, forward_fn)), *watch.ends) if t.grad_fn is not None]

    with as_it_was(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.requires_grad_(True)
        watch.hook(model, heads)
        try:
            dg = tp.DependencyGraph().build_dependency(model.eval(), example_inputs, forward_fn=forward, verbose=False)
            found = list(dg.get_all_groups(root_module_types=(*CONVS, nn.Linear, nn.Embedding)))
        except Exception as error:  # whatever user code or the tracer raises
            shown = f"{type(error).__name__}: {error}"
            raise ValueError(f"the dependencies of {type(model).__name__} can't be traced ({shown})") from error
    for group in found:
        _read(graph, model, dg, group)
    seen = {dg._module2name[m] for m in dg.module2node if m in dg._module2name}
    graph.calls = watch.calls
    graph.reasons.update({fqn: "the way of its outputs can't be followed" for fqn in graph.calls if fqn not in seen})
    for fqn, group in heads.items():
        if {*group.layers("out"), *group.layers("in")} <= set(graph.calls):
            graph.groups[fqn] = group
            graph.reasons.update(dict.fromkeys(group.layers("out"), "it belongs to attention heads"))
        else:
            graph.reasons[fqn] = "its layers were not called"
    _find_norms(graph, dg)
    return graph


def _find_norms(graph: Graph, dg: Any) -> None:
    names = dg._module2name
    for module, node in dg.module2node.items():
        if isinstance(module, CONVS) and len(node.outputs) == 1 and isinstance(node.outputs[0].module, BATCH_NORMS):
            graph.norm_after[names[module]] = names[node.outputs[0].module]


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
    units = units_of(len(found[0].idxs), [c for part in parts for c in part.couplings])
    if not {"in", "out"} <= roles:
        graph.reasons[root] = "no layer that takes its outputs was found"
    elif len(units) < 2:
        graph.reasons[root] = "its outputs all depend on each other"
    else:
        graph.groups[root] = _group(model, root, parts, units)
        graph.sources[root] = (found, units)


def _group(model: nn.Module, root: str, parts: list[Part], units: list[list[int]]) -> Group:
    slices = tuple(s for part in parts for s in part.slices)
    convs = any(s.role == "out" and isinstance(model.get_submodule(s.fqn), CONVS) for s in slices)
    kind = "width" if any(part.wide for part in parts) else "channel" if convs else "neuron"
    sizes = [
        Size(size.fqn, size.name, size.per_unit * len(units[0]), size.item) for part in parts for size in part.sizes
    ]
    exact = all(part.exact and not part.wide for part in parts)
    return coupled(Group(root, kind, len(units), slices, tuple(sizes), exact=exact), units)


def _item(dg: Any, names: dict[int, str], item: Any, size: int) -> Part | str:
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
        if type(owner) in FEATURE_NORMS:  # nn.RMSNorm: torch-pruning knows its weight only
            module, fqn = owner, fqn.rpartition(".")[0]
    return Part([], []) if fqn is None else part_of(module, fqn, out, index)


def prunable(model: nn.Module, graph: Graph, granularity: Collection[str], ignored: Collection[str]) -> Graph:
    """The graph with only those groups that are to be pruned.

    Raises:
        ValueError: there are none.
    """
    for name, group in list(graph.groups.items()):
        makers, readers = set(group.layers("out")), set(group.layers("in"))
        if not (makers | {name}).isdisjoint(ignored) or (group.kind == "head" and not readers.isdisjoint(ignored)):
            graph.reasons[name] = "it is ignored"
        elif group.kind not in granularity:
            graph.reasons[name] = f"its units are {group.kind}s"
        elif group.size < 2:
            graph.reasons[name] = f"it has only one {group.kind}"
        else:
            continue
        del graph.groups[name]
    if not graph.groups:
        reasons = "; ".join(f"{name or 'the model'}: {why}" for name, why in graph.reasons.items())
        raise ValueError(f"nothing in {type(model).__name__} can be pruned: {reasons or 'it has no layers'}")
    return graph
