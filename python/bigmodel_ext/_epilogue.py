"""Finding activation modules that follow a converted linear layer, and having the layer compute them.

Only where this is certain from the model's code: in an nn.Sequential, and in modules whose forward is a straight line
of tensor code (found in its torch.fx trace, as by fuse_dropout_). The layer is called once, its result is read by the
activation only, both are held once, and what holds the module that calls them does nothing with it but call it.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn

from bigmodel_ext._fuse import activation_of, child, traced
from bigmodel_ext._surgery import Changes, Place, Survey, has_hooks
from bigmodel_ext.nn import (
    Absorbed,
    BinaryCodedLinear,
    Int8Linear,
    Int8SparseLinear,
    Int8WeightOnlyLinear,
    SparseLinear,
)
from bigmodel_ext.nn._linear import Activated

Model = TypeVar("Model", bound=nn.Module)

_FAMILIES = ("torch.nn.modules.activation", "transformers.activations")


@dataclass(frozen=True)
class Pair:
    """A layer and the module that its result goes to; `problem`: what is wrong with how they are called."""

    linear: nn.Module
    activation: nn.Module
    problem: str | None = None


def _is_activation(module: object) -> bool:
    return type(module).__module__ in _FAMILIES


def _plain_sequential(owner: nn.Module) -> bool:
    """Whether calling a module calls its children one after the other, and nothing in its class does anything else."""
    if not isinstance(owner, nn.Sequential) or "forward" in vars(owner):
        return False
    own = [vars(cls) for cls in type(owner).__mro__[: type(owner).__mro__.index(nn.Sequential)]]
    return not any(callable(value) for names in own for name, value in names.items() if name != "__init__")


def _code_of(module: nn.Module) -> Iterator[types.CodeType]:
    """The code of a module's methods, its constructor and torch's own classes left out."""
    waiting = []
    for cls in type(module).__mro__:
        if cls.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for value in vars(cls).values():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            function = inspect.unwrap(function) if callable(function) else None
            if isinstance(function, types.FunctionType) and function.__name__ != "__init__":
                waiting.append(function.__code__)
    while waiting:
        code = waiting.pop()
        waiting += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        yield code


@functools.cache
def _loads(code: types.CodeType) -> dict[str, bool]:
    """The attributes that a function reads, and whether it does more with one than to call it."""
    loads: dict[str, bool] = {}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            call = step.opname == "LOAD_METHOD" or "NULL" in step.argrepr
            loads[step.argval] = loads.get(step.argval, False) or not call
    return loads


def _misuse(survey: Survey, place: Place, leaves: set[str]) -> str | None:
    """What holds a module, directly or further up, and does more with it than to call it: it may call the module's
    children (`leaves`, where they have names) by themselves."""
    waiting: list[tuple[Place, tuple[str, ...], bool]] = [(place, (), True)]
    while waiting:
        below, names, chained = waiting.pop()  # names: of the modules from here down to the one in question
        for parent, name in below.holders:
            path = (name, *names) if name.isidentifier() else names
            for code in _code_of(parent):
                loads = _loads(code)
                direct = chained and len(path) == 1 and loads.get(path[0], False)
                inside = bool(names) and leaves & loads.keys() and loads.keys() >= set(path)
                listed = not chained and path and leaves & loads.keys() and loads.keys() >= set(path)
                if direct or inside or listed:
                    return f"{type(parent).__name__}.{code.co_name} does more with {'.'.join(path)} than call it"
            in_turn = chained and not isinstance(parent, (nn.ModuleList, nn.ModuleDict))
            waiting.append((survey.places[id(parent)], path, in_turn))
    return None


def _of_trace(owner: nn.Module) -> Iterator[Pair]:
    trace = traced(owner)
    if isinstance(trace, str):
        # Which layer's result goes where is not known: name those that may be meant.
        children = list(owner.children())
        layers = [m for m in children if isinstance(m, Activated)]
        yield from (Pair(layers[0], m, trace) for m in children if layers and activation_of(m))
        return
    graph, hidden = trace
    for node in graph.nodes:
        if node.op != "call_module" or not _is_activation(owner.get_submodule(str(node.target))):
            continue
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        linear, activation = owner.get_submodule(str(source.target)), owner.get_submodule(str(node.target))
        problem = None
        if child(owner, source) is None or child(owner, node) is None:
            problem = "one of them is called more than once"
        elif "." in f"{source.target}{node.target}":
            problem = "one of them belongs to a module that may be called as a whole"
        elif len(source.users) != 1:
            problem = "the layer's result is used elsewhere too"
        elif {str(n.target).split(".")[0] for n in (source, node)} & hidden:
            problem = f"other code of {type(owner).__name__} uses one of them"
        yield Pair(linear, activation, problem)


def _pairs(owner: nn.Module) -> Iterator[Pair]:
    held = list(owner.modules())
    if not any(isinstance(m, Activated) for m in held) or not any(map(_is_activation, held)):
        return
    if _plain_sequential(owner):
        modules = [m for m in owner._modules.values() if m is not None]  # children() names a shared one only once
        yield from (Pair(*two) for two in itertools.pairwise(modules) if _is_activation(two[1]))
    elif type(owner).__module__.split(".")[0] not in ("torch", "bigmodel_ext"):
        yield from _of_trace(owner)


def _why_not(survey: Survey, pair: Pair) -> str | None:
    if pair.problem:
        return pair.problem
    if type(pair.linear) not in (BinaryCodedLinear, Int8Linear, Int8SparseLinear, Int8WeightOnlyLinear, SparseLinear):
        return f"{type(pair.linear).__name__} is a subclass, which may change the layer's result"
    for module, name in ((pair.linear, "the layer"), (pair.activation, "the activation")):
        if has_hooks(module, of_state=module is pair.activation):
            return f"{name} has hooks, which would see other values"
        if len(survey.places[id(module)].holders) != 1:
            return f"{name} is used in several places"
        if "forward" in vars(module):
            return f"{name}'s forward was replaced"
    if activation_of(pair.activation) is None:
        return f"no kernel computes exactly what {pair.activation!r} does"
    if isinstance(pair.linear, Activated) and pair.linear.activation != "none":
        return f"the layer computes {pair.linear.activation} already"
    return None


def fuse_activation_(model: Model) -> Model:
    """Have the model's converted linear layers (nn.Int8Linear, nn.Int8WeightOnlyLinear, nn.SparseLinear,
    nn.Int8SparseLinear) compute, in place, the activation module that follows them: on results that are still in a
    cache, where a module of its own reads and writes them in memory. An :class:`nn.Absorbed` takes the module's place.
    Call it after quantize_ or sparsify_ (and after fuse_dropout_, which takes the activations in front of a dropout).

    Fused are nn.ReLU, nn.GELU (not its tanh form), nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU(0.01), nn.Softplus() and
    transformers' modules for torch's GELU and SiLU, where the model's code shows that nothing else sees the layer's
    result. Not seen is what code does with modules
    that it takes out of a list or reaches by getattr, children(), _modules or a closure.

    Returns:
        model, unchanged if anything raises. A UserWarning names the activations behind such layers that were left, and
        why.
    """
    survey, changes, left = Survey(model), Changes(), dict[str, str]()
    for place in survey.places.values():
        for pair in _pairs(place.module):
            if not isinstance(pair.linear, Activated):
                continue
            names = {name for m in (pair.linear, pair.activation) for _, name in survey.places[id(m)].holders}
            leaves = {name for name in names if name.isidentifier()}
            reason, name = _why_not(survey, pair) or _misuse(survey, place, leaves), activation_of(pair.activation)
            if reason or name is None:
                left[survey.places[id(pair.activation)].fqn] = str(reason)
                continue
            changes.activations.append((pair.linear, name))
            changes.replace(survey.places[id(pair.activation)], Absorbed().train(pair.activation.training))
    if left:
        told = "; ".join(f"{fqn}: {why}" for fqn, why in left.items())
        warnings.warn(f"{len(left)} activation(s) were not fused: {told}", UserWarning, stacklevel=2)
    changes.apply(model)
    return model
