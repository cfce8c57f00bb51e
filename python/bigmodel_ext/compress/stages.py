"""The stages from a trained teacher to a compressed model. Each tries its settings from the boldest and keeps the first
that stays within the accuracy budget on the validation examples; if none does, it passes on what it was given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from bigmodel_ext.compress import select
from bigmodel_ext.compress.distill import Distillation
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, Loss, OnStep, TrainConfig, accuracy, fit
from bigmodel_ext.train.progress import Progress
from bigmodel_ext.train.tasks import Data, Recipe, Task

KEEP_FLOAT = (0.0, 0.25, 0.5)  # share of layers, worst int8 error first, that stay float32


@dataclass(frozen=True)
class Attempt:
    """A setting that a stage tried."""

    setting: str
    validation_accuracy: float
    kept: bool


@dataclass(frozen=True)
class Stage:
    """A stage's result; `settings` are what Task.build needs for the architecture."""

    name: str
    model: nn.Module
    settings: Mapping[str, Any]
    setting: str
    validation_accuracy: float
    attempts: tuple[Attempt, ...] = ()

    @property
    def rolled_back(self) -> bool:
        return any(not attempt.kept for attempt in self.attempts)


@dataclass(frozen=True)
class Outcome:
    data: Data
    stages: tuple[Stage, ...]  # teacher, student, pruned, int8
    choices: tuple[select.LayerChoice, ...]


@dataclass(frozen=True)
class _Job:
    task: Task
    recipe: Recipe
    data: Data
    seed: int
    max_drop: float
    progress: Progress
    floor: list[float] = field(default_factory=list)  # the validation accuracy to keep, once the teacher's is known

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.task.build(settings)

    def fit(
        self, name: str, model: nn.Module, loss: Loss, config: TrainConfig, salt: int, on_step: OnStep | None = None
    ) -> float:
        """Train, and return the accuracy on the validation examples."""
        seed = 10 * self.seed + salt
        with self.progress.stage(name, config.epochs) as advance:
            augment = Augment(self.recipe.augment, seed)
            fit(
                model, self.data.train, loss, config,
                seed=seed, augment=augment, on_step=on_step, on_epoch=advance, stage=name,
            )  # fmt: skip
        return accuracy(model, self.data.validation)

    def within(self, validation_accuracy: float) -> bool:
        return validation_accuracy >= self.floor[0] - self.max_drop - 1e-9

    def tell(self, attempt: Attempt) -> Attempt:
        verdict = "kept" if attempt.kept else f"below the budget ({self.floor[0] - self.max_drop:.2%}), rolled back"
        self.progress.note(f"  {attempt.setting}: validation accuracy {attempt.validation_accuracy:.2%}, {verdict}")
        return attempt


def run(task: Task, recipe: Recipe, *, seed: int, max_drop: float, progress: Progress) -> Outcome:
    """Train a teacher and compress it; nothing is written.

    Args:
        seed: of split, initial weights, order and augmentation.
        max_drop: how much validation accuracy a stage may lose against the teacher.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
    """
    job = _Job(task, recipe, task.load(seed), seed, max_drop, progress)
    teacher = _teacher(job)
    student = _student(job, teacher)
    pruned = _prune(job, teacher, student)
    int8, choices = _int8(job, pruned)
    return Outcome(job.data, (teacher, student, pruned, int8), choices)


def _teacher(job: _Job) -> Stage:
    settings = job.recipe.teacher
    model = job.build(settings)
    loss = CrossEntropy(job.recipe.label_smoothing)
    validation = job.fit("teacher", model, loss, job.recipe.train_teacher, salt=0)
    job.floor.append(validation)
    job.progress.note(f"  {_told(settings)}: validation accuracy {validation:.2%}")
    return Stage("teacher", model, settings, _told(settings), validation)


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _first_within(
    job: _Job,
    name: str,
    before: Stage,
    tries: Sequence[tuple[str, Mapping[str, Any], Callable[[], tuple[nn.Module, float]]]],
) -> Stage:
    """The first try that keeps the budget; else `before` under this stage's name."""
    attempts = []
    for setting, settings, make in tries:
        model, validation = make()
        kept = job.within(validation)
        attempts.append(job.tell(Attempt(setting, validation, kept)))
        if kept:
            return Stage(name, model, settings, setting, validation, tuple(attempts))
    job.progress.note(f"  no setting keeps the budget: going on with the {before.name}")
    return replace(before, name=name, setting=f"the {before.name}, unchanged", attempts=tuple(attempts))


def _distillation(job: _Job, teacher: Stage) -> Distillation:
    recipe = job.recipe
    return Distillation(teacher.model, recipe.temperature, recipe.soft_weight, recipe.feature_weight)


def _student(job: _Job, teacher: Stage) -> Stage:
    loss = _distillation(job, teacher)

    def make(settings: Mapping[str, Any]) -> tuple[nn.Module, float]:
        model = job.build(settings)
        return model, job.fit("distilled student", model, loss, job.recipe.train_student, salt=1)

    tries = [(_told(s), s, partial(make, s)) for s in job.recipe.students]
    return _first_within(job, "student", teacher, tries)


def _prune(job: _Job, teacher: Stage, student: Stage) -> Stage:
    loss, config = _distillation(job, teacher), job.recipe.prune_student

    def make(sparsity: float) -> tuple[nn.Module, float]:
        model = copy.deepcopy(student.model)
        pruner = MaskPruner(
            model, granularity="1x4", pruning_ratio=sparsity,
            filter_fn=lambda layer, fqn: isinstance(layer, nn.Linear) and job.task.prunable(fqn),
        )  # fmt: skip
        gradual = GradualPruner(pruner, config.steps(len(job.data.train)))
        return model, job.fit(f"pruned to {sparsity:.0%}", model, loss, config, salt=2, on_step=gradual)

    tries = [(f"{s:.0%} of 1x4 blocks zero", student.settings, partial(make, s)) for s in job.recipe.sparsities]
    return _first_within(job, "pruned", student, tries)


def _int8(job: _Job, pruned: Stage) -> tuple[Stage, tuple[select.LayerChoice, ...]]:
    job.progress.note("int8: measuring each layer as fp32, int8 and 1x4-block-sparse int8")
    inputs = _batch(job.data, job.recipe.latency_batch)
    measured = select.choose(pruned.model, inputs)
    chosen: list[tuple[select.LayerChoice, ...]] = []

    def make(share: float) -> tuple[nn.Module, float]:
        chosen.append(_with_float(measured, share))
        model = select.apply(pruned.model, chosen[-1])
        return model, accuracy(model, job.data.validation)

    def told(share: float) -> str:
        return (
            f"the {share:.0%} of layers with the largest int8 error stay fp32"
            if share
            else "every layer's fastest form"
        )

    tries = [(told(share), pruned.settings, partial(make, share)) for share in KEEP_FLOAT]
    stage = _first_within(job, "int8", pruned, tries)
    unchanged = stage.model is pruned.model
    return stage, _with_float(measured, 1.0) if unchanged else chosen[-1]


def _with_float(choices: list[select.LayerChoice], share: float) -> tuple[select.LayerChoice, ...]:
    """The choices, with the given share of layers, largest int8 error first, back at float32."""
    worst = sorted(choices, key=lambda choice: -choice.error)[: round(share * len(choices))]
    reason = "kept in fp32 for accuracy"
    return tuple(replace(c, kind=select.DENSE, reason=reason) if c in worst else c for c in choices)


def _batch(data: Data, size: int) -> torch.Tensor:
    """A batch to time with: training examples, over again if they are too few."""
    inputs = data.train.inputs
    return inputs[torch.arange(size) % len(inputs)]
