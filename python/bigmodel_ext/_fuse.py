"""Finding bias -> activation -> dropout -> residual chains and giving each to one FusedDropout.

In an nn.Sequential, [Linear, activation, Dropout] becomes [Linear without bias, Absorbed, FusedDropout with the bias],
so the state dict's `<i>.bias` is now `<i + 2>.bias` (the same Parameter). In a module of one's own whose forward is a
straight line of tensor code, `x + dropout(act(linear(x)))` and parts of it are found in its torch.fx trace; the module
object keeps its children, attributes and methods and gets a subclass of its class with the shorter forward; the bias
moves likewise. (Such a model can be copied and saved by save_model, but not pickled whole.) Anywhere else each
nn.Dropout is exchanged for a FusedDropout by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from bigmodel_ext._straight import names_in_other_methods, why_not_straight
from bigmodel_ext._surgery import Changes, Place, Survey, has_hooks, without_bias
from bigmodel_ext.nn import Absorbed, FusedDropout

Model = TypeVar("Model", bound=nn.Module)

CHAINS = "_bigmodel_chains"  # attribute of a class whose forward was shortened

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", F.leaky_relu: "leaky_relu", F.gelu: "gelu", F.silu: "silu",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.tanh: "tanh", torch.tanh: "tanh", F.softplus: "softplus",
}  # fmt: skip
_ADDS: tuple[Any, ...] = (operator.add, torch.add)


@dataclass(frozen=True)
class Chain:
    """dropout: the nn.Dropout's path in its owner; linear: path of the layer whose bias moves; absorbed: of the
    activation module (in an nn.Sequential, where it must be replaced)."""

    dropout: str
    activation: str = "none"
    linear: str | None = None
    absorbed: str | None = None
    residual: bool = False

    def plan(self) -> dict[str, object]:
        return asdict(self)


def activation_of(module: nn.Module) -> str | None:
    """The name of the activation a module computes exactly as FusedDropout does, or None."""
    kind = type(module)
    if kind in (nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh):
        return kind.__name__.lower()
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else None
    if isinstance(module, nn.Softplus) and kind is nn.Softplus:
        return "softplus" if (module.beta, module.threshold) == (1, 20) else None
    if kind.__module__ == "transformers.activations":  # torch's functions as modules
        if kind.__name__ == "GELUActivation" and getattr(module, "act", None) is F.gelu:
            return "gelu"
        return "silu" if kind.__name__ == "SiLUActivation" else None
    return None


def _inplace(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


def _bias_may_move(survey: Survey, linear: nn.Module | None) -> bool:
    if type(linear) is not nn.Linear or linear.bias is None or has_hooks(linear):
        return False
    return len(survey.places[id(linear)].holders) == 1 and not survey.tied_names(linear.bias)


def _may_join(survey: Survey, dropout: nn.Module | None) -> bool:
    """Whether a module is an nn.Dropout that may be made part of a chain."""
    return type(dropout) is nn.Dropout and not has_hooks(dropout) and len(survey.places[id(dropout)].holders) == 1


def _sequential_chains(survey: Survey, sequential: nn.Sequential) -> list[Chain]:
    chains = []
    names, modules = list(sequential._modules), list(sequential)
    for i in range(1, len(modules)):
        before, activation = modules[i - 2] if i >= 2 else None, activation_of(modules[i - 1])
        if activation is None or has_hooks(modules[i - 1]) or not _may_join(survey, modules[i]):
            continue
        if (_inplace(modules[i - 1]) or _inplace(modules[i])) and not isinstance(before, nn.Linear):
            continue  # it would write to a tensor that others may see
        linear = names[i - 2] if _bias_may_move(survey, before) else None
        chains.append(Chain(names[i], activation, linear, names[i - 1]))
    return chains


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def child(owner: nn.Module, node: object) -> nn.Module | None:
    """The module a node calls with one tensor, if it is called nowhere else in the graph."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
    return owner.get_submodule(str(node.target)) if len(calls) == 1 else None


def _activation(owner: nn.Module, node: object) -> tuple[str | None, bool]:
    """The activation that a node computes, and whether in place."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None, False
    module = child(owner, node)
    if module is not None and not has_hooks(module):
        return activation_of(module), _inplace(module)
    # A trace of F.relu records its default inplace=False.
    plain = len(node.args) == 1 and set(node.kwargs.values()) <= {False}
    if node.op == "call_function" and plain:
        return _FUNCTIONS.get(node.target), False
    if node.op == "call_method" and plain and node.target in ("relu", "sigmoid", "tanh"):
        return str(node.target), False
    return None, False


def _residual(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(the addition, its other operand) if the node's only use is to be added to a tensor."""
    if len(node.users) != 1:
        return None
    add = next(iter(node.users))
    if not (add.op == "call_function" and add.target in _ADDS) and not (
        add.op == "call_method" and add.target == "add"
    ):
        return None
    others = [a for a in add.args if a is not node]
    if add.kwargs or len(add.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    return add, others[0]


def _writes(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    mutates = node.op in ("call_method", "call_function") and (name.endswith("_") or node.kwargs.get("inplace") is True)
    return mutates or name in ("iadd", "isub", "imul", "itruediv", "setitem")


def _fuse_node(
    survey: Survey, owner: nn.Module, node: fx.Node, hidden: set[str], absorbed: Collection[int]
) -> Chain | None:
    """Make the chain around a Dropout's node one call, if there is one. `hidden`: children used in ways not traced."""
    dropout = child(owner, node)
    if not _may_join(survey, dropout) or dropout is None or str(node.target).split(".")[0] in hidden:
        return None
    source = node.args[0]
    activation, inplace = _activation(owner, source)
    if id(child(owner, source)) in absorbed:
        activation = None
    if activation is not None and isinstance(source, fx.Node):
        inner = source.args[0]
    else:
        activation, inplace, inner = "none", False, source
    before = child(owner, inner)
    fresh = isinstance(before, nn.Linear) and isinstance(inner, fx.Node) and len(inner.users) == 1
    if (inplace or _inplace(dropout)) and not fresh:
        return None
    moves = activation != "none" and fresh and _bias_may_move(survey, before) and isinstance(inner, fx.Node)
    linear = str(inner.target) if moves and isinstance(inner, fx.Node) else None
    if linear is not None and linear.split(".")[0] in hidden:
        linear = None
    added = _residual(node)
    if activation == "none" and added is None:
        return None
    end, others = (node, ()) if added is None else (added[0], added[1:])
    with node.graph.inserting_before(end):
        call = node.graph.call_module(str(node.target), (inner, *others))
    end.replace_all_uses_with(call)
    for old in dict.fromkeys((end, node, source)):
        if isinstance(old, fx.Node) and (old is not source or activation != "none"):
            node.graph.erase_node(old)
    return Chain(str(node.target), activation, linear, None, added is not None)


def traced(owner: nn.Module) -> tuple[fx.Graph, set[str]] | str:
    """The trace of a module's own forward, and the names of children that it does not tell everything about; or why
    there is none."""
    reason = why_not_straight(owner)
    if reason:
        return reason
    try:
        graph = _Shallow().trace(owner)
    except Exception as error:  # whatever user code does when given a proxy
        return f"torch.fx can't trace its forward ({type(error).__name__}: {error})"
    if any(_writes(n) or (n.op == "get_attr" and str(n.target).startswith("_tensor_constant")) for n in graph.nodes):
        return "its forward writes to tensors or makes constants"
    return graph, names_in_other_methods(owner) | {
        str(n.target).split(".")[0] for n in graph.nodes if n.op == "get_attr"
    }


def block_chains(
    survey: Survey, owner: nn.Module, absorbed: Collection[int] = ()
) -> tuple[list[Chain], fx.Graph] | str:
    """The chains in a module's own forward and the trace in which each is one call; or why there are none. `absorbed`:
    ids of activation modules that count as the identity."""
    trace = traced(owner)
    if isinstance(trace, str):
        return trace
    graph, hidden = trace
    calls = [n for n in graph.nodes if n.op == "call_module"]
    chains = [chain for node in calls if (chain := _fuse_node(survey, owner, node, hidden, absorbed))]
    graph.lint()
    return (chains, graph) if chains else "it has no chain around a Dropout"


def shortened(cls: type[nn.Module], graph: fx.Graph, chains: list[Chain]) -> type[nn.Module]:
    """A subclass of cls whose forward runs the graph."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, f"<fused {cls.__qualname__}.forward>", "exec"), scope)
    body = {"forward": scope["forward"], CHAINS: tuple(chains), "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(f"Fused{cls.__name__}", (cls,), body)


def may_have_chains(module: nn.Module) -> bool:
    ours_or_torchs = type(module).__module__.split(".")[0] in ("torch", "bigmodel_ext")
    return not ours_or_torchs and not hasattr(type(module), CHAINS) and not has_hooks(module, of_state=False)


def _apply_chain(survey: Survey, changes: Changes, owner: nn.Module, chain: Chain) -> None:
    dropout = owner.get_submodule(chain.dropout)
    assert isinstance(dropout, nn.Dropout)
    fused = FusedDropout(dropout.p, chain.activation).train(dropout.training)
    if chain.linear is not None:
        linear = owner.get_submodule(chain.linear)
        assert isinstance(linear, nn.Linear)
        fused.bias = linear.bias
        changes.replace(survey.places[id(linear)], without_bias(linear))
    if chain.absorbed is not None:
        changes.swaps.append((owner, chain.absorbed, Absorbed()))
    changes.replace(survey.places[id(dropout)], fused)


def why_not_dropout(place: Place) -> str | None:
    """Why a dropout can't be exchanged for a FusedDropout, or None."""
    if isinstance(place.module, FusedDropout):
        return "already converted"
    if type(place.module) is not nn.Dropout:
        return f"{type(place.module).__name__} is a subclass of nn.Dropout"
    if has_hooks(place.module):
        return "it has hooks, which a replacement would lose"
    if place.module.inplace:
        return "inplace=True writes to its input"
    return None


def fuse_dropout_(model: Model) -> Model:
    """Exchange, in place, every nn.Dropout for a FusedDropout that also does the bias, activation and residual around
    it where that is safe (see the module's notes: a moved bias changes its name in the state dict). In eval mode
    outputs stay the same up to rounding; in training the masks are drawn differently from nn.Dropout's.

    Code that reads `linear.bias`, or calls single elements of an nn.Sequential, must expect the moved parts.

    Returns:
        model, unchanged if anything raises.

    Raises:
        ValueError: model is itself an nn.Dropout.
    """
    survey, changes = Survey(model), Changes()
    if type(model) is nn.Dropout:
        raise ValueError(
            "model is itself an nn.Dropout, which can't be exchanged in place: use nn.FusedDropout(model.p)"
        )
    done: set[int] = set()
    for place in survey.places.values():
        owner = place.module
        chains: list[Chain] = []
        if type(owner) is nn.Sequential:
            chains = [c for c in _sequential_chains(survey, owner) if id(owner.get_submodule(c.dropout)) not in done]
        elif may_have_chains(owner):
            found = block_chains(survey, owner)
            if not isinstance(found, str):
                chains = found[0]
                changes.classes.append((owner, shortened(type(owner), found[1], chains)))
        for chain in chains:
            _apply_chain(survey, changes, owner, chain)
            done.add(id(owner.get_submodule(chain.dropout)))
    for key, place in survey.places.items():
        if key not in done and isinstance(place.module, nn.Dropout) and why_not_dropout(place) is None:
            changes.replace(place, FusedDropout(place.module.p).train(place.module.training))
    changes.apply(model)
    return model
