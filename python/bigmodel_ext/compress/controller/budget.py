"""How much accuracy may be lost, and what a validation function may return."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bigmodel_ext.train.loop import evaluating

ValidationFn = Callable[[nn.Module], float]  # higher is better
DROP_TYPES = ("absolute", "relative")
_ROUNDING = 1e-9


def least_score(baseline: float, max_drop: float, drop_type: str) -> float:
    """``baseline - max_drop``, or ``baseline - max_drop * |baseline|`` where drop_type is "relative"."""
    return baseline - max_drop * (abs(baseline) if drop_type == "relative" else 1.0)


@dataclass(frozen=True)
class Budget:
    """A model is within the budget if ``validation_fn(model) >= baseline - max_drop`` (drop_type "absolute") or
    ``>= baseline - max_drop * |baseline|`` ("relative"); baseline is the original model's own figure.

    Args:
        validation_fn: called with a model in eval mode, without gradients; higher is better (an accuracy, or minus a
            loss). It must not change the model.
        max_drop: finite and at least 0.

    Raises:
        TypeError, ValueError: an argument is not one of those above.
    """

    validation_fn: ValidationFn
    max_drop: float
    drop_type: str = "absolute"

    def __post_init__(self) -> None:
        if not callable(self.validation_fn):
            raise TypeError(f"validation_fn must be callable, got {self.validation_fn!r}")
        if self.drop_type not in DROP_TYPES:
            raise ValueError(f"drop_type must be one of {', '.join(DROP_TYPES)}, got {self.drop_type!r}")
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise ValueError(f"max_drop must be finite and at least 0, got {self.max_drop}")

    def score(self, model: nn.Module) -> float:
        """validation_fn(model), its modules' modes restored.

        Raises:
            TypeError: it returned something that is not a number.
            ValueError: it returned NaN or infinity.
        """
        with evaluating(model):
            value = self.validation_fn(model)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"validation_fn must return a number, got {value!r}") from error
        if not math.isfinite(number):
            raise ValueError(f"validation_fn must return a finite number, got {number}")
        return number

    def floor(self, baseline: float) -> float:
        """The least score that keeps the budget."""
        return least_score(baseline, self.max_drop, self.drop_type)

    def within(self, score: float, baseline: float, share: float = 1.0) -> bool:
        """Whether no more than this share of max_drop is lost."""
        return score >= baseline - share * (baseline - self.floor(baseline)) - _ROUNDING
