"""What each form of each layer costs, and what it does to the model's output: the tables that the search works on."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._measure import interleave
from bigmodel_ext.compress.calibrate import observe
from bigmodel_ext.compress.controller.forms import DENSE, Form
from bigmodel_ext.compress.measure import latencies, state_bytes, threads
from bigmodel_ext.train.loop import evaluating

Build = Callable[[str, Form], nn.Module]  # (fqn, form) -> the layer in that form
BAD = 1e30  # damage of outputs that are not numbers: JSON has no infinity
TIMED_S, ROUNDS = 0.02, (5, 25)  # spent on timing a layer's forms against each other, and the least and most rounds


def main_output(output: Any) -> Tensor:
    """A model's output, or the `logits` or first tensor of one that is an object, a mapping or a sequence.

    Raises:
        TypeError: there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"the model must return a tensor, or something that holds one, got {type(output).__name__}")


@contextmanager
def exchanged(model: nn.Module, fqn: str, new: nn.Module) -> Iterator[None]:
    """The model with one of its layers exchanged, wherever it stands."""
    old = model.get_submodule(fqn)
    places = [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is old]
    try:
        for parent, name in places:
            parent._modules[name] = new
        yield
    finally:
        for parent, name in places:
            parent._modules[name] = old


def byte_costs(layers: Mapping[str, nn.Module], forms: Mapping[str, Sequence[Form]], build: Build) -> dict[str, Any]:
    """{fqn: [bytes of the state dict of each form]}."""
    return {fqn: [float(state_bytes(build(fqn, form))) for form in forms[fqn]] for fqn in layers}


def _key(layer: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Layers with one key take equally long: their sizes (extra_repr tells them all) and what they are called with."""
    return f"{type(layer).__name__}({layer.extra_repr()}) {[(str(x.dtype), list(x.shape)) for x in inputs]}"


def _run(layer: nn.Module, inputs: Sequence[Tensor]) -> None:
    for x in inputs:
        layer(x)


def latency_costs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    forms: Mapping[str, Sequence[Form]],
    build: Build,
    inputs: Tensor,
    recall: Callable[[str, Callable[[], Any]], Any],
) -> dict[str, Any]:
    """{fqn: [seconds of each form]} on one thread, on what the layer sees when model(inputs) runs; a layer's forms take
    turns, and layers of the same sizes are timed once.

    Args:
        recall: recall(name, compute) -> compute()'s value, or an earlier one's of that name (see `Journal`).
    """
    seen: dict[str, list[Tensor]] = {}

    def note(fqn: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        seen.setdefault(fqn, []).append(x.clone())

    observe(model, lambda m: m(inputs), layers, note)
    costs = {}
    with threads(1):
        for fqn, layer in layers.items():
            own = forms[fqn]
            name = f"latency of {_key(layer, seen[fqn])} as {', '.join(map(str, own))}"
            costs[fqn] = recall(name, partial(_times, fqn, own, build, seen.pop(fqn)))
    return costs


@torch.inference_mode()
def _times(fqn: str, forms: Sequence[Form], build: Build, inputs: Sequence[Tensor]) -> list[float]:
    calls = [partial(_run, build(fqn, form).eval(), inputs) for form in forms]
    once = sum(row[0] for row in interleave(calls, 1))
    times = interleave(calls, min(max(int(TIMED_S * len(calls) / max(once, 1e-9)), ROUNDS[0]), ROUNDS[1]))
    # Ratios to the first form are what drifts least; its median brings them back to seconds.
    first = statistics.median(times[0])
    return [first * statistics.median(t / max(f, 1e-9) for t, f in zip(own, times[0], strict=True)) for own in times]


def model_cost(model: nn.Module, cost: str, inputs: Tensor, recall: Callable[[str, Callable[[], Any]], Any]) -> float:
    """What the whole model costs: bytes, or seconds for `inputs` on one thread."""
    if cost == "bytes":
        return float(state_bytes(model))
    return float(recall("latency", lambda: 1e-3 * latencies({"model": model}, inputs)["model"]["latency_ms"]))


def model_change(model: nn.Module, other: nn.Module, cost: str, inputs: Tensor) -> float:
    """By how much `other` costs more than `model` (less: negative), the two taking turns."""
    if cost == "bytes":
        return float(state_bytes(other) - state_bytes(model))
    timed = latencies({"model": model, "other": other}, inputs, rounds=9)
    whole = 1e-3 * timed["model"]["latency_ms"]
    return whole / timed["other"]["speedup"] - whole


def damage(model: nn.Module, other: nn.Module, batches: Sequence[Tensor]) -> float:
    """``||y' - y||^2 / ||y - mean(y)||^2`` over the models' outputs y and y'; at most BAD, which NaN is too."""
    exact = _outputs(model, batches)
    return _relative(_outputs(other, batches), exact)


def damages(
    model: nn.Module, forms: Mapping[str, Sequence[Form]], build: Build, batches: Sequence[Tensor]
) -> dict[str, list[float]]:
    """{fqn: [`damage` of the model with only this layer in that form]}: 0 for dense. Small changes add up, and so
    nearly do these."""
    model = copy.deepcopy(model)
    exact, table = _outputs(model, batches), dict[str, list[float]]()
    for fqn, own in forms.items():
        table[fqn] = []
        for form in own:
            if form == DENSE:
                table[fqn].append(0.0)
                continue
            with exchanged(model, fqn, build(fqn, form).eval()):
                table[fqn].append(_relative(_outputs(model, batches), exact))
    return table


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with evaluating(model):
        return [_rows(main_output(model(x)).float()) for x in batches]


def _rows(y: Tensor) -> Tensor:
    return y.flatten(0, -2) if y.dim() > 1 else y.reshape(-1, 1)


def _relative(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    mean = torch.cat([*exact]).mean(0)
    whole = sum(float((y - mean).double().square().sum()) for y in exact)
    wrong = sum(float((a - b).double().square().sum()) for a, b in zip(found, exact, strict=True))
    share = wrong / max(whole, 1e-30)
    return min(share, BAD) if share == share else BAD
