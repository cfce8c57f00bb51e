"""A seeded training loop for any module and loss: AdamW with warm-up and a cosine, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def steps(self, examples: int) -> int:
        return self.epochs * self.steps_per_epoch(examples)

    def steps_per_epoch(self, examples: int) -> int:
        seen = examples if self.examples is None else min(examples, self.examples)
        return max(1, seen // self.batch_size)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy against targets smoothed towards uniform (Szegedy et al. 2016): (1 - s) onehot + s / classes, its
    mean over the batch and, where the model gives logits [B, T, classes], over the positions."""

    label_smoothing: float = 0.1

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=self.label_smoothing)


def cosine(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor: linear to 1 over the first ``warmup * total`` steps, times a half cosine to 0
    (Loshchilov & Hutter 2017): ``min(1, (step + 1) / warm) * (1 + cos(pi * step / total)) / 2``."""
    warm = max(1.0, warmup * total)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / total))


def fit(
    model: nn.Module,
    examples: Examples | Batches,
    loss: Loss,
    config: TrainConfig,
    *,
    seed: int,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    stage: str = "train",
) -> list[float]:
    """Train model in place; leaves it in eval mode.

    Args:
        examples: what to train on. Of Examples, each epoch sees all in a new order, a last incomplete batch left out;
            batches come in the order, number and size that their iterator gives them.
        loss: loss(model, inputs, targets) -> scalar. Parameters of its own, if it is a module, are trained too.
        seed: of the order of examples.
        augment: changes a batch of inputs.
        on_step: called with the number of steps done after each; here a pruner keeps its masks.
        on_epoch: called with (epochs done, mean loss).
        stage: a name for error messages.

    Returns:
        the mean loss of each epoch.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; the model keeps the weights of the step before.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = nn.ModuleList([model, loss]) if isinstance(loss, nn.Module) else model
    optimizer = torch.optim.AdamW(_groups(trained, config.weight_decay), lr=config.learning_rate)
    total, step, means = total_steps(examples, config), 0, []
    for epoch in range(config.epochs):
        model.train()
        losses, first = 0.0, step
        for inputs, targets in _epoch(examples, config, generator):
            value = loss(model, inputs if augment is None else augment(inputs), targets)
            losses += _finite(value, stage, epoch + 1)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * cosine(step, total, config.warmup)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), config.clip)
            optimizer.step()
            step += 1
            if on_step is not None:
                on_step(step)
        means.append(losses / max(1, step - first))
        if on_epoch is not None:
            on_epoch(epoch + 1, means[-1])
    model.eval()
    return means


def total_steps(examples: Examples | Batches, config: TrainConfig) -> int:
    """How many steps `fit` takes."""
    return config.steps(len(examples)) if isinstance(examples, Examples) else config.epochs * len(examples)


def _epoch(
    examples: Examples | Batches, config: TrainConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    if not isinstance(examples, Examples):
        yield from examples
        return
    order = torch.randperm(len(examples), generator=generator)
    for i in range(config.steps_per_epoch(len(examples))):
        batch = order[i * config.batch_size : (i + 1) * config.batch_size]
        yield examples.inputs[batch], examples.targets[batch]


def _finite(value: Tensor, stage: str, epoch: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise NonFiniteLossError(f"the loss became {number} in stage '{stage}', epoch {epoch}")
    return number


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and norms do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and inference mode, its own mode restored after."""
    before = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(before)


def outputs(model: nn.Module, inputs: Tensor, batch: int = 256) -> Tensor:
    """The model's outputs over all inputs, computed in batches."""
    with evaluating(model):
        return torch.cat([model(inputs[i : i + batch]) for i in range(0, len(inputs), batch)])


def accuracy(model: nn.Module, examples: Examples) -> float:
    """The share of targets whose output is the largest, over examples and positions."""
    hits = outputs(model, examples.inputs).argmax(-1) == examples.targets
    return float(hits.double().mean())
