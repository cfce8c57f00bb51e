"""Whether taking units out does to a model what it should, tried on copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._pruned import Surgery
from bigmodel_ext.compress.prune.structured.graph import as_it_was, call, tensors
from bigmodel_ext.compress.prune.structured.units import Group, cuts_of

# What rounding may do, as a share of the largest output. Attention that mixes the wrong channels can be off by little.
_CLOSE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
Removed = Sequence[tuple[Group, Sequence[int]]]
Run = Callable[[nn.Module, bool], list[Tensor]]


def runner(example_inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None) -> Run:
    """run(model, exact): the outputs for the example inputs; exact: computed in float64, by a model made so."""

    def run(model: nn.Module, exact: bool) -> list[Tensor]:
        inputs = _doubled(example_inputs) if exact else example_inputs
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return list(tensors(call((model.double() if exact else model).eval(), inputs, forward_fn)))

    return run


def _doubled(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: _doubled(value) for name, value in inputs.items()}
    return type(inputs)(_doubled(value) for value in inputs) if type(inputs) in (tuple, list) else inputs


def _silenced(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy in which nothing reads the units."""
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for group, units in removed:
            for s in group.slices:
                if s.role == "in":
                    gone = [i for unit in units for i in s.index[unit]]
                    silent.get_submodule(s.fqn).get_parameter(s.tensor).data[:, gone] = 0.0
    return silent


def _without(model: nn.Module, removed: Removed) -> nn.Module:
    smaller = copy.deepcopy(model)
    Surgery(smaller, cuts_of(smaller, removed)).apply()
    return smaller


def _fault(model: nn.Module, removed: Removed, run: Run) -> str | None:
    """What is wrong with the model without these units, or None."""
    exact = [(group, units) for group, units in removed if group.exact]
    try:
        wanted, double = run(_silenced(model, exact), True), True
    except Exception:  # code of its own that takes no float64
        wanted, double = run(_silenced(model, exact), False), False
    try:
        outputs = run(_without(model, exact), double)
        if len(exact) < len(removed):
            run(_without(model, removed), False)
    except Exception as error:  # whatever user code raises
        return f"the model then raises {type(error).__name__}: {error}"
    for have, want in zip(outputs, wanted, strict=True):
        if have.shape != want.shape:
            return f"its output is then {list(have.shape)}, not {list(want.shape)}"
        close = _CLOSE.get(want.dtype)
        if close is not None:
            scale = float(want.abs().max()) if want.numel() else 0.0
            if not torch.allclose(have, want, rtol=0.0, atol=close * scale + 1e-12, equal_nan=True):
                off = float((have - want).abs().max())
                return f"its output is then off by {off:.3g} (of {scale:.3g}) from that with the units silenced"
    return None


def verify(model: nn.Module, removed: Removed, run: Run) -> None:
    """Try it on copies: the smaller model must run, and where no norm looks at the units as a whole its outputs must be
    those of the model in which nothing reads the units.

    Raises:
        ValueError: it is not so; the message names the first group at fault, if one is by itself.
    """
    with as_it_was(model):
        fault = _fault(model, removed, run)
        if fault is None:
            return
        for group, units in removed:
            alone = _fault(model, [(group, units)], run)
            if alone is not None:
                what = f"pruning {len(units)} of {group.size} {group.kind}s of {group.name!r}"
                hint = "name it in ignored_layers, or declare its attention with heads={...}"
                raise ValueError(f"{what} does not work: {alone}; {hint}")
        raise ValueError(f"pruning {', '.join(g.name for g, _ in removed)} together does not work: {fault}")
