"""Gradual pruning (Zhu & Gupta 2017, "To prune, or not to prune"): while a model trains on, ever more of its least
important weights are set to zero and kept there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bigmodel_ext.compress.prune.masks import MaskPruner
from bigmodel_ext.compress.prune.policy import require_ratio


def cubic(step: int, begin: int, end: int) -> float:
    """``1 - (1 - (step - begin) / (end - begin))^3``, 0 before `begin` and 1 after `end`: fast at first, when much is
    redundant, and slow near the end. Raises ValueError: end is not above begin."""
    if end <= begin:
        raise ValueError(f"end must be above begin, got begin {begin} and end {end}")
    return 1.0 - (1.0 - min(max((step - begin) / (end - begin), 0.0), 1.0)) ** 3


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """``initial + (final - initial) * cubic(step, begin, end)``.

    Raises:
        ValueError: end is not above begin, or a sparsity is outside [0, 1).
    """
    require_ratio("final", final)
    require_ratio("initial", initial)
    return initial + (final - initial) * cubic(step, begin, end)


class GradualPruner:
    """Brings a `MaskPruner` to its ratios along the cubic schedule; call it after each optimizer step (``on_step``).

    Args:
        pruner: which layers, by what importance and granularity, to what ratios; its own `step` is not used.
        steps: the training's number of steps; the masks move from step 0 until `ramp * steps`.
        ramp: in (0, 1]; the rest of the training mends what pruning broke.
        every: steps between two changes of the masks; they are applied after each step. An importance that needs data
            runs its forward_loop at each change.

    Raises:
        ValueError: an argument is not one of those above.
    """

    def __init__(self, pruner: MaskPruner, steps: int, ramp: float = 0.6, every: int = 4) -> None:
        if not 0.0 < ramp <= 1.0:
            raise ValueError(f"ramp must be in (0, 1], got {ramp}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if pruner.granularity == "2:4":
            raise ValueError("granularity '2:4' has no steps between: prune with the pruner itself, and train with it")
        self.pruner, self.every = pruner, every
        self.end = max(1, int(ramp * steps))

    @property
    def masks(self) -> dict[str, Tensor]:
        """The pruner's masks."""
        return self.pruner.masks

    def __call__(self, step: int) -> None:
        """Bring the masks up to the schedule's value for this step, where one is due, and apply them."""
        if step <= self.end and (step % self.every == 0 or step == self.end):
            self.pruner.prune_to(cubic(step, 0, self.end))
        else:
            self.pruner.apply()

    def state(self) -> dict[str, Tensor]:
        """The pruner's."""
        return self.pruner.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Into the pruner."""
        self.pruner.restore(state)
