"""What calibration data say of a model's layers: the second moments of their inputs, and how far an error in a layer's
output moves the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bigmodel_ext.compress.calibrate import ForwardLoop, second_moments
from bigmodel_ext.compress.quantize._rounding import Block, Nearest, rounded
from bigmodel_ext.train.loop import evaluating

Call = tuple[tuple[Any, ...], dict[str, Any]]

_CALLS, _ELEMENTS = 8, 1 << 22  # of the loop's calls of the model so many are kept, to be repeated
_OUTPUTS = 1 << 20  # of an output so many elements are compared
_LEAST = 1e-6  # of the largest gain: no layer is free


def _copied(value: Any) -> Any:
    return _pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def calibrated(
    model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], list[Call]]:
    """(`calibrate.second_moments`, the first calls of the model itself). Raises ValueError as the former."""
    calls: list[Call] = []
    room = [_ELEMENTS]

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        size = sum(leaf.numel() for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if len(calls) < _CALLS and (size <= room[0] or not calls):
            calls.append((_copied(args), _copied(kwargs)))
            room[0] -= size

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        return second_moments(model, forward_loop, layers), calls
    finally:
        hook.remove()


def _answer(output: Any) -> Tensor | None:
    """What of a model's output is compared: its logits, or else its first floating-point tensor."""
    leaves = [getattr(output, "logits", None), *_pytree.tree_leaves(output)]
    found = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)
    if found is None:
        return None
    flat = found.detach().double().flatten()
    return flat[:: max(1, -(-flat.numel() // _OUTPUTS))]


def _answers(model: nn.Module, calls: list[Call], weights: dict[str, Tensor]) -> list[Tensor]:
    found = (_answer(torch.func.functional_call(model, weights, args, kwargs)) for args, kwargs in calls)
    return [answer for answer in found if answer is not None]


def output_gains(
    model: nn.Module, calls: list[Call], layers: Mapping[str, nn.Module], blocks: Mapping[str, list[Block]]
) -> dict[str, float]:
    """``g = |y' - y|^2 / trace((W - V) H (W - V)^T)`` for each layer alone, y the model's output and V the layer's
    weight rounded to a step of a quarter of its standard deviation: errors of several layers add up about as
    ``sum g * error``. Without calls that can be repeated, the error relative to the layer's own output,
    ``g = 1 / trace(W H W^T)``.

    Raises:
        ValueError: the model's output on the calibration data is not finite.
    """
    with evaluating(model):
        plain = _answers(model, calls, {})
        gains: dict[str, float] = {}
        for fqn, layer in layers.items():
            weight: Any = layer.weight
            changed, error = _disturbed(blocks[fqn])
            if plain:
                moved = changed.view(weight.shape).to(weight)
                other = _answers(model, calls, {f"{fqn}.weight": moved})
                far = sum(float((b - a).square().sum()) for a, b in zip(plain, other, strict=True))
                if not far < torch.inf:
                    raise ValueError(f"the model's output on the calibration data is not finite (with {fqn} changed)")
                gains[fqn] = far / error if error > 0 else 0.0
            else:
                zero = [(b, torch.zeros_like(b.weight, dtype=torch.int8)) for b in blocks[fqn]]
                whole = sum(block.distortion(q, torch.ones(len(q))) for block, q in zero)
                gains[fqn] = 1 / whole if whole > 0 else 0.0
    floor = max(gains.values()) * _LEAST or 1.0
    return {fqn: max(gain, floor) for fqn, gain in gains.items()}


def _disturbed(blocks: list[Block]) -> tuple[Tensor, float]:
    """(a layer's weight as rounding changes it, the error that makes in its output)."""
    parts, error = [], 0.0
    for block in blocks:
        step = (block.weight.std(unbiased=False) / 4).clamp_min(torch.finfo(torch.float32).tiny)
        steps = torch.full((len(block.weight),), float(step))
        q = rounded(block, steps, Nearest())
        parts.append(q.float() * steps[:, None])
        error += block.distortion(q, steps)
    return torch.cat(parts), error
