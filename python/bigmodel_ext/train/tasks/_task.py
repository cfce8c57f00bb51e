"""What a task is made of: data, models, and how to train and compress them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bigmodel_ext.train.loop import Examples, TrainConfig, accuracy


@dataclass(frozen=True)
class Data:
    """Training changes weights, validation chooses among models, and test is looked at only to be reported."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Recipe:
    """Students are tried in their order, from the boldest, until one keeps within the accuracy budget; sparsities are
    what each layer may have."""

    teacher: Mapping[str, Any]
    students: tuple[Mapping[str, Any], ...]
    sparsities: tuple[float, ...]
    augment: Mapping[str, float]
    train_teacher: TrainConfig
    train_student: TrainConfig
    prune_student: TrainConfig
    label_smoothing: float = 0.1
    temperature: float = 3.0
    soft_weight: float = 0.9  # of the teacher's answers in the loss; the rest is the labels'
    feature_weight: float = 0.0
    latency_batch: int = 256
    trials: int = 5  # combinations of the layers' forms that are trained


@dataclass(frozen=True)
class Metric:
    """How good a model is, as a number that is higher for a better one: ``metric(model, examples)``."""

    name: str  # what `show` shows
    score: Callable[[nn.Module, Examples], float]
    show: Callable[[float], str]  # a score as people read it

    def __call__(self, model: nn.Module, examples: Examples) -> float:
        return self.score(model, examples)


ACCURACY = Metric("accuracy", accuracy, lambda score: f"{score:.2%}")


@dataclass(frozen=True)
class Task:
    name: str
    load: Callable[[int], Data]  # seed -> data
    build: Callable[[Mapping[str, Any]], nn.Module]  # model settings, as in Recipe.teacher -> a fresh model
    recipe: Recipe
    quick: Recipe  # seconds, to see that everything runs; its figures mean nothing
    prunable: Callable[[str], bool] = field(default=lambda fqn: True)  # which linear layers may be pruned
    metric: Metric = ACCURACY
    drop_type: str = "absolute"  # what max_drop counts: points of the metric, or ("relative") a share of it
