"""Where a factor per channel can move from one layer into another without changing what the model computes.

A linear layer's input may be divided by s (by channel) and its weight's columns multiplied by it. The division is free
where a layer before can take it over: a norm or linear layer, all of whose outputs go to linear layers, directly or
through functions f with ``f(x / s) = f(x) / s`` for s > 0. That is read off a torch.fx trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

PRODUCERS = (nn.LayerNorm, nn.RMSNorm, nn.Linear)
_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Identity)
_FUNCTIONS: tuple[Any, ...] = (F.relu, torch.relu, F.leaky_relu, F.dropout)
_METHODS = ("relu", "relu_", "contiguous", "clone", "detach")


@dataclass(frozen=True)
class Fold:
    """The outputs of `producer` go to `consumers`, all of them linear layers, and nowhere else."""

    producer: str
    consumers: tuple[str, ...]


def _trace(module: nn.Module) -> fx.Graph | None:
    try:
        return fx.Tracer().trace(module)
    except Exception:  # whatever a model's own code raises when it is run on proxies
        return None


def _graphs(module: nn.Module, fqn: str) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """The traces that together cover as much as can be traced: a module's own, or else those of its children."""
    graph = _trace(module)
    if graph is not None:
        yield fqn, module, graph
        return
    for name, child in module.named_children():
        if any(True for _ in child.children()):
            yield from _graphs(child, f"{fqn}.{name}" if fqn else name)


def _passes_factors(node: fx.Node, owner: nn.Module) -> bool:
    if node.op == "call_module":
        return type(owner.get_submodule(str(node.target))) in _MODULES
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _uses(node: fx.Node, owner: nn.Module) -> Iterator[tuple[fx.Node, str | None]]:
    """Where a node's value ends up: (node, the name of the linear layer that it enters, or None)."""
    for user in node.users:
        if user.op == "call_module" and type(owner.get_submodule(str(user.target))) is nn.Linear:
            yield user, str(user.target)
        elif _passes_factors(user, owner) and user.args[:1] == (node,):
            yield from _uses(user, owner)
        elif user.op == "call_function" and user.target is getattr and user.args[1:] == ("shape",):
            continue  # its sizes are read
        elif user.op == "call_method" and user.target in ("size", "dim"):
            continue
        else:
            yield user, None


def _source(node: Any, owner: nn.Module) -> fx.Node | None:
    """The call of the module that a linear layer's input comes from."""
    while isinstance(node, fx.Node) and _passes_factors(node, owner):
        node = node.args[0] if node.args else None
    return node if isinstance(node, fx.Node) else None


def _told(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", node.target)
    return "the model's output" if node.op == "output" else f"{name}"


def _fold(call: fx.Node, calls: Counter[str], owner: nn.Module) -> Fold | str:
    """From the node that calls a producer."""
    name = str(call.target)
    uses = list(_uses(call, owner))
    other = [user for user, linear in uses if linear is None]
    if other:
        return f"{name}'s output also goes to {_told(other[0])}"
    consumers = tuple(dict.fromkeys(linear for _, linear in uses if linear is not None))
    for called in (name, *consumers):
        if calls[called] > 1:
            return f"{called} is called {calls[called]} times"
    return Fold(name, consumers)


def _why_not_producer(source: fx.Node | None, owner: nn.Module) -> str | None:
    if source is None or source.op != "call_module":
        return f"its input comes from {_told(source) if source is not None else 'no module'}"
    module = owner.get_submodule(str(source.target))
    if type(module) not in PRODUCERS:
        return f"its input comes from {source.target}, a {type(module).__name__}"
    if module.weight is None:
        return f"{source.target} has no weight to take the factors"
    return None


def find_folds(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[list[Fold], dict[str, str]]:
    """The folds into which these linear layers (by name) fit, and for each of the others why there is none."""
    folds: list[Fold] = []
    why = dict.fromkeys(layers, "the module that calls it can't be traced by torch.fx")
    held = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for prefix, owner, graph in _graphs(model, ""):
        calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        whole = (lambda name, p=prefix: f"{p}.{name}") if prefix else str
        for node in graph.nodes:
            if node.op != "call_module" or whole(str(node.target)) not in layers:
                continue
            fqn = whole(str(node.target))
            source = _source(node.args[0] if node.args else None, owner)
            problem = _why_not_producer(source, owner)
            found = problem if problem or source is None else _fold(source, calls, owner)
            if isinstance(found, Fold):
                names = [whole(name) for name in (found.producer, *found.consumers)]
                found = _usable(Fold(names[0], tuple(names[1:])), model, layers, held)
            if isinstance(found, str) or found is None:
                why[fqn] = found or "its input comes from no module"
                continue
            why.pop(fqn, None)
            if found not in folds:
                folds.append(found)
    return folds, why


def _usable(fold: Fold, model: nn.Module, layers: Mapping[str, nn.Module], held: Counter[int]) -> Fold | str:
    for name in (fold.producer, *fold.consumers):
        if held[id(model.get_submodule(name))] > 1:
            return f"{name} is held in several places of the model"
    left = [name for name in fold.consumers if name not in layers]
    if left:
        return f"{fold.producer}'s output also goes to {left[0]}, which is not quantized"
    return fold


def apply_fold(model: nn.Module, fold: Fold, factors: torch.Tensor) -> None:
    """Divide the producer's outputs by factors [C], and multiply the columns of its consumers' weights by them."""
    producer: Any = model.get_submodule(fold.producer)
    with torch.no_grad():
        rows = factors.view(-1, *[1] * (producer.weight.dim() - 1)).to(producer.weight.dtype)
        producer.weight.div_(rows)
        if getattr(producer, "bias", None) is not None:
            producer.bias.div_(factors.to(producer.bias.dtype))
        for name in fold.consumers:
            weight: Any = model.get_submodule(name).weight
            weight.mul_(factors.to(weight.dtype))
