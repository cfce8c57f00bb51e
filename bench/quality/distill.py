"""A student with a teacher against the same student without one, and one trunk for two tasks against two students.

With and without teacher: the same examples, augmentation, steps, learning rate, initial weights and order of examples,
five seeds of each; learning rate (and for text the epochs) are those at which the student *without* did best on
validation examples, and the better of plain and smoothed labels is what we compare with. The regime is the one that
distillation is meant for: a small student with little data, a teacher that has seen more. Figures are of test examples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from bigmodel_ext.compress.distill import DistillationLoss, Labels, Logits, SharedTrunk, TrunkLoss, together
from bigmodel_ext.compress.measure import threads
from bigmodel_ext.train import tasks
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, Examples, Loss, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks.digits import AUGMENT
from torch import Tensor, nn

from bench.quality._row import Row

SEEDS = range(5)


def rows() -> Iterator[Row]:
    with threads(1):
        yield from _digits()
        yield from _text()
        yield from _same_images()
        yield from _own_loaders()


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def _build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _teach(teacher: nn.Module, temperature: float, weight: float) -> DistillationLoss:
    return DistillationLoss(teacher, {("", ""): Logits(temperature, weight)}, {"labels": Labels(1 - weight)})


def _some(examples: Examples, count: int, seed: int) -> Examples:
    chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
    return Examples(examples.inputs[chosen], examples.targets[chosen])


def _compare(
    told: str, metric: str, lower: bool, losses: Mapping[str, Loss], train: Callable[[Loss, int], float]
) -> Row:
    """losses: first the one with a teacher, then those without."""
    figures = {name: [train(loss, seed) for seed in SEEDS] for name, loss in losses.items()}
    ours, *others = figures
    best = (min if lower else max)(others, key=lambda name: statistics.mean(figures[name]))
    spreads = "; ".join(f"{name} {_spread(values)}" for name, values in figures.items())
    means = statistics.mean(figures[ours]), statistics.mean(figures[best])
    better = sum((a < b) if lower else (a > b) for a, b in zip(figures[ours], figures[best], strict=True))
    told = f"{told}: {spreads}; better with {better} of {len(SEEDS)} seeds"
    return Row(told, metric, means[0], best, means[1], lower_is_better=lower)


def _digits() -> Iterator[Row]:
    task, data = tasks.get("digits"), tasks.get("digits").load(0)
    teacher = _build(lambda: task.build({"width": 64, "depth": 2, "heads": 4, "mlp": 256}), 0)
    fit(teacher, data.train, CrossEntropy(0.1), TrainConfig(15, 32, 4e-3), seed=0, augment=Augment(AUGMENT, 0))

    def train(loss: Loss, seed: int) -> float:
        student = _build(lambda: task.build({"width": 24, "depth": 1, "heads": 2, "mlp": 48}), seed)
        few = _some(data.train, 100, seed)
        fit(student, few, loss, TrainConfig(100, 32, 1e-2), seed=seed, augment=Augment(AUGMENT, seed))
        return 100 * accuracy(student, data.test)

    losses = {
        "taught": _teach(teacher, 3.0, 0.9), "labels alone": CrossEntropy(0.0), "smoothed labels": CrossEntropy(0.1),
    }  # fmt: skip
    told = f"digits, ViT 24x1, 100 labels, 300 steps, teacher {100 * accuracy(teacher, data.test):.1f}"
    yield _compare(told, "test accuracy, %", False, losses, train)


def _text() -> Iterator[Row]:
    from bigmodel_ext.train.tasks.text import bits_per_character

    task, data = tasks.get("text"), tasks.get("text").load(0)
    test = _some(data.test, 256, 0)
    teacher = _build(lambda: task.build({"width": 96, "depth": 2, "heads": 4, "kv_heads": 2, "mlp": 256}), 0)
    fit(teacher, data.train, CrossEntropy(0.0), TrainConfig(3, 16, 5e-3, examples=1024), seed=0)

    def train(loss: Loss, seed: int) -> float:
        student = _build(lambda: task.build({"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "mlp": 64}), seed)
        fit(student, _some(data.train, 32, seed), loss, TrainConfig(48, 8, 2.5e-3), seed=seed)
        return bits_per_character(student, test)

    losses = {
        "taught": _teach(teacher, 1.0, 0.7), "labels alone": CrossEntropy(0.0), "smoothed labels": CrossEntropy(0.1),
    }  # fmt: skip
    told = f"text, transformer 32x1, 4096 characters, 192 steps, teacher {bits_per_character(teacher, test):.3f}"
    yield _compare(told, "test, bits per character", True, losses, train)


STUDENT = {"width": 32, "depth": 2, "heads": 4, "mlp": 64}
BIG = {"width": 64, "depth": 2, "heads": 4, "mlp": 256}
STUDENT_TRAINING, BIG_TRAINING = TrainConfig(20, 32, 6e-3), TrainConfig(15, 32, 4e-3)
Tasks = Mapping[str, tuple[Examples, Examples, int]]  # task -> (training, test, classes)


def _vit(settings: Mapping[str, Any], classes: int) -> nn.Module:
    return tasks.get("digits").build({**settings, "classes": classes})


def _trunk(classes: Mapping[str, int]) -> SharedTrunk:
    trunk = _vit(STUDENT, 1)
    trunk.head = nn.Identity()
    return SharedTrunk(trunk, {task: nn.Linear(STUDENT["width"], count) for task, count in classes.items()})


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _against_two(told: str, given: Tasks, fit_trunk: Callable[..., None], weights: str | None) -> Iterator[Row]:
    """A student a task against one trunk, all with the same teachers, each task's examples seen equally often."""
    losses = {}
    for name, (train, _, classes) in given.items():
        teacher = _build(lambda classes=classes: _vit(BIG, classes), 0)  # type: ignore[misc]
        fit(teacher, train, CrossEntropy(0.1), BIG_TRAINING, seed=0, augment=Augment(AUGMENT, 0))
        losses[name] = _teach(teacher, 3.0, 0.9)
    students: dict[str, list[float]] = {name: [] for name in given}
    shared: dict[str, list[float]] = {name: [] for name in given}
    sizes = [0, 0]
    for seed in SEEDS:
        model = _build(lambda: _trunk({name: classes for name, (_, _, classes) in given.items()}), seed)
        fit_trunk(model, TrunkLoss(losses, weights), seed)
        sizes = [_parameters(model), 0]
        for name, (train, test, classes) in given.items():
            student = _build(lambda classes=classes: _vit(STUDENT, classes), seed)  # type: ignore[misc]
            fit(student, train, losses[name], STUDENT_TRAINING, seed=seed, augment=Augment(AUGMENT, seed))
            sizes[1] += _parameters(student)
            students[name].append(100 * accuracy(student, test))
            shared[name].append(100 * accuracy(model.only(name), test))
    yield Row(f"{told}, shared trunk", "parameters", sizes[0], "two students", sizes[1], factor=0.6)
    for name in given:
        case = f"{told}, {name}: shared trunk {_spread(shared[name])}; own student {_spread(students[name])}"
        below = statistics.mean(students[name]) - statistics.mean(shared[name])
        yield Row(case, "points below own student", below, "allowed", 0.5)


def _same_images() -> Iterator[Row]:
    """Which digit, and is it odd: one loader, both answers for each image; equal weights (on validation examples
    learned ones, which lean to the smaller loss, cost the digits a point)."""
    data = tasks.get("digits").load(0)

    def odd(examples: Examples) -> Examples:
        return Examples(examples.inputs, examples.targets % 2)

    given = {"digit": (data.train, data.test, 10), "odd": (odd(data.train), odd(data.test), 2)}

    def fit_trunk(model: nn.Module, loss: TrunkLoss, seed: int) -> None:
        both = Examples(data.train.inputs, torch.stack([data.train.targets, data.train.targets % 2], 1))
        fit(model, both, loss, STUDENT_TRAINING, seed=seed, augment=Augment(AUGMENT, seed))

    yield from _against_two("digits", given, fit_trunk, None)


def _turned(examples: Examples, seed: int) -> Examples:
    """Each image turned by 0, 90, 180 or 270 degrees, and by how much."""
    turns = torch.randint(4, (len(examples),), generator=torch.Generator().manual_seed(seed))
    images = [image.rot90(int(turn), (1, 2)) for image, turn in zip(examples.inputs, turns, strict=True)]
    return Examples(torch.stack(images), turns)


def _own_loaders() -> Iterator[Row]:
    """Which digit, and which way up another image is: unrelated tasks, from loaders of their own; weights learned."""
    data = tasks.get("digits").load(0)
    given = {
        "digit": (data.train, data.test, 10), "way up": (_turned(data.train, 0), _turned(data.test, 1), 4),
    }  # fmt: skip

    def fit_trunk(model: nn.Module, loss: TrunkLoss, seed: int) -> None:
        loaders = {name: _Loader(train, seed + i) for i, (name, (train, _, _)) in enumerate(given.items())}
        steps = [step for _ in range(STUDENT_TRAINING.epochs) for step in together(loaders)]
        numbers = Examples(torch.arange(len(steps)), torch.arange(len(steps)))
        config = TrainConfig(1, 1, STUDENT_TRAINING.learning_rate)

        def on(student: nn.Module, number: Tensor, _: Tensor) -> Tensor:
            return loss.on(student, steps[int(number)])

        fit(model, numbers, _Trained(loss, on), config, seed=seed)

    yield from _against_two("digits", given, fit_trunk, "uncertainty")


class _Trained(nn.Module):
    """A step's loss, with the parameters that are trained with it."""

    def __init__(self, loss: nn.Module, step: Loss) -> None:
        super().__init__()
        self.loss, self.step = loss, step

    def forward(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.step(model, inputs, targets)


class _Loader:
    """Augmented batches of the students' size, in a new order each time."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self._examples, self._generator = examples, torch.Generator().manual_seed(seed)
        self._augment = Augment(AUGMENT, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = STUDENT_TRAINING.batch_size
        order = torch.randperm(len(self._examples), generator=self._generator)
        for i in range(STUDENT_TRAINING.steps_per_epoch(len(order))):
            batch = order[i * size : (i + 1) * size]
            yield self._augment(self._examples.inputs[batch]), self._examples.targets[batch]
