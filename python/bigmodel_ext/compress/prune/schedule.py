"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune"): while a model trains on, ever more of each
layer's smallest weights are set to zero and kept there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigmodel_ext.convert import block_mask, magnitude_mask

GRANULARITIES = {"weight": magnitude_mask, "1x4": block_mask}


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """``final + (initial - final) * (1 - (step - begin) / (end - begin))^3``, constant outside [begin, end].

    Fast at first, when much is redundant, and slow near the end.

    Raises:
        ValueError: end is not above begin, or a sparsity is outside [0, 1).
    """
    if end <= begin:
        raise ValueError(f"end must be above begin, got begin {begin} and end {end}")
    for name, value in (("final", final), ("initial", initial)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    done = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1.0 - done) ** 3


class GradualPruner:
    """Masks for some linear layers that follow the cubic schedule; call it after each optimizer step (``on_step``).

    A pruned weight is zero, so it is among the smallest when the masks are drawn again: the masks only grow.

    Args:
        layers: the layers by name; their weights are changed in place.
        final: share of each layer's weights (or blocks) that is zero in the end.
        steps: the training's number of steps; the masks move from step 0 until `ramp * steps`.
        granularity: "weight", or "1x4" for blocks of four neighbouring weights of a row, by their sum of squares.
        ramp: in (0, 1]; the rest of the training mends what pruning broke.
        every: steps between two changes of the masks; they are applied after each step.

    Raises:
        ValueError: an argument is not one of those above, or there are no layers.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Linear],
        final: float,
        steps: int,
        granularity: str = "1x4",
        ramp: float = 0.6,
        every: int = 4,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}")
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        if not 0.0 < ramp <= 1.0:
            raise ValueError(f"ramp must be in (0, 1], got {ramp}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.layers = dict(layers)
        self.final, self.every = final, every
        self.end = max(1, int(ramp * steps))
        self._mask_of = GRANULARITIES[granularity]
        self.masks: dict[str, Tensor] = {}
        self.target = cubic_sparsity(0, 0, self.end, final)  # also checks `final`

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Bring the masks up to the schedule's value for this step, where one is due, and apply them."""
        if step <= self.end and (step % self.every == 0 or step == self.end):
            self.target = cubic_sparsity(step, 0, self.end, self.final)
            self.masks = {name: self._mask_of(layer.weight, self.target) for name, layer in self.layers.items()}
        for name, mask in self.masks.items():
            self.layers[name].weight.mul_(mask)
