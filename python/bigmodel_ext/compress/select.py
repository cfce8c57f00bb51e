"""Which kernel each linear layer gets: dense float32, dense int8 or 1x4-block-sparse int8, the fastest as measured here
on the layer's own inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bigmodel_ext import _measure
from bigmodel_ext._choose import as_fast_as_best
from bigmodel_ext.compress.measure import state_bytes, threads
from bigmodel_ext.convert import (
    Int8BlockSparseWeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    quantize_,
    sparsify_,
)
from bigmodel_ext.nn import Int8Linear, Int8SparseLinear
from bigmodel_ext.train.loop import evaluating

DENSE, INT8, INT8_SPARSE = "fp32", "int8", "int8 1x4-sparse"
MARGIN = 1.1  # forms whose speeds are within this factor count as equally fast


@dataclass(frozen=True)
class LayerChoice:
    """One layer: its form, how many times as fast as dense float32 each form was, and why this one."""

    fqn: str
    kind: str
    rows: int
    zero_blocks: float
    gains: dict[str, float]
    error: float  # of int8: ||y_int8 - y|| / ||y|| on the layer's inputs
    reason: str


def layer_inputs(model: nn.Module, inputs: Tensor) -> dict[str, tuple[nn.Linear, Tensor]]:
    """Every nn.Linear of the model that `inputs` reach, with what it sees."""
    seen: dict[str, tuple[nn.Linear, Tensor]] = {}
    hooks = []
    for fqn, layer in model.named_modules():
        if type(layer) is nn.Linear:
            hooks.append(layer.register_forward_pre_hook(_recorder(seen, fqn)))
    try:
        with evaluating(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _recorder(seen: dict[str, tuple[nn.Linear, Tensor]], fqn: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def record(layer: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.Linear)
        seen[fqn] = (layer, args[0].detach())

    return record


def choose(model: nn.Module, inputs: Tensor) -> list[LayerChoice]:
    """Measure every linear layer of a float model in each form, on one thread, taking turns."""
    with threads(1), torch.inference_mode():
        return [_choose(fqn, layer, x) for fqn, (layer, x) in layer_inputs(model, inputs).items()]


def _choose(fqn: str, layer: nn.Linear, x: Tensor) -> LayerChoice:
    forms: dict[str, nn.Module] = {DENSE: layer, INT8: Int8Linear.from_float(layer)}
    blocks = nn.functional.pad(layer.weight, (0, -layer.in_features % 4)).view(-1, 4)
    zero_blocks = float((blocks == 0).all(1).double().mean())
    if zero_blocks > 0:
        forms[INT8_SPARSE] = Int8SparseLinear.from_dense(layer)
    exact, quantized = layer(x), forms[INT8](x)
    error = float((quantized - exact).norm() / exact.norm().clamp_min(1e-30))
    measured = _measure.gains(*(partial(form, x) for form in forms.values()))
    gains = dict(zip(forms, (1.0, *measured), strict=True))
    sizes = {name: state_bytes(form) for name, form in forms.items()}
    kind, reason = _fastest(gains, sizes, zero_blocks)
    return LayerChoice(fqn, kind, x.numel() // x.shape[-1], zero_blocks, gains, error, reason)


def _fastest(gains: dict[str, float], sizes: dict[str, int], zero_blocks: float) -> tuple[str, str]:
    """The fastest form; among those as good as the fastest, the smallest, so that noise does not decide."""
    names = list(gains)
    close = [names[i] for i in as_fast_as_best(list(gains.values()), MARGIN)]
    best = min(close, key=lambda name: sizes[name])
    told = ", ".join(f"{name} {gain:.2f}x" for name, gain in gains.items() if name != DENSE)
    why = "fastest" if len(close) == 1 else f"smallest of the fastest ({', '.join(close)})"
    sparse = f"{zero_blocks:.0%} of 1x4 blocks are zero" if zero_blocks else "not pruned"
    return best, f"{why} as measured: {told} of fp32; {sparse}"


def apply(model: nn.Module, choices: Collection[LayerChoice]) -> nn.Module:
    """A copy of the model with each layer in its chosen form, which is not measured again."""
    converted = copy.deepcopy(model)
    kinds = {choice.fqn: choice.kind for choice in choices}

    def chosen(kind: str) -> Callable[[nn.Module, str], bool]:
        return lambda module, fqn: kinds.get(fqn) == kind

    if INT8_SPARSE in kinds.values():
        sparsify_(converted, Int8BlockSparseWeightConfig(rows=()), filter_fn=chosen(INT8_SPARSE))
    if INT8 in kinds.values():
        quantize_(converted, Int8DynamicActivationInt8WeightConfig(rows=()), filter_fn=chosen(INT8))
    return converted.eval()
