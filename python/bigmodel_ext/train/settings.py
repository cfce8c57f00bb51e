"""What a training run is told, and by what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

OPTIMIZERS = ("sgd", "adam", "adamw")  # see optimizers.py
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
OnStep = Callable[[int], None]
OnEpoch = Callable[[int, float], None]


class Batches(Protocol):
    """Anything that gives (inputs, targets) batches and can be iterated again: a DataLoader, a list."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


class NonFiniteLossError(RuntimeError):
    """Training went astray; the message names stage, epoch and value."""


@dataclass(frozen=True)
class Examples:
    """inputs [n, ...] and class indices targets: [n], or [n, T] where a model gives logits for each of T positions."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class TrainConfig:
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # norm of the gradient
    examples: int | None = None  # that an epoch sees, drawn anew for each; None: all
    optimizer: str = "adamw"  # or "adam", "sgd"; those add weight_decay times the weight to its gradient
    momentum: float = 0.9  # of sgd
    nesterov: bool = False  # of sgd

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError(f"nesterov needs sgd with momentum, got {self.optimizer!r} with {self.momentum}")

    def steps(self, examples: int, processes: int = 1) -> int:
        return self.epochs * self.steps_per_epoch(examples, processes)

    def steps_per_epoch(self, examples: int, processes: int = 1) -> int:
        """Whole batches, of batch_size from each process; at least one."""
        seen = examples if self.examples is None else min(examples, self.examples)
        return max(1, seen // (self.batch_size * processes))


def cosine(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor: linear to 1 over the first ``warmup * total`` steps, times a half cosine to 0
    (Loshchilov & Hutter 2017): ``min(1, (step + 1) / warm) * (1 + cos(pi * step / total)) / 2``."""
    warm = max(1.0, warmup * total)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / total))
