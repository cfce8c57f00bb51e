"""The main job: train a task's teacher, compress it, save, reload elsewhere, check, report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext import checkpoint, convert
from bigmodel_ext._machine import cpu_name
from bigmodel_ext.compress import measure, output, plots, reload, report
from bigmodel_ext.compress.calibrate import observe
from bigmodel_ext.compress.controller.budget import least_score
from bigmodel_ext.compress.controller.forms import forms
from bigmodel_ext.compress.distill import Distillation
from bigmodel_ext.compress.pipeline import run as pipeline
from bigmodel_ext.compress.pipeline.steps import ChooseLayers, Distill, Step
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, Examples, fit
from bigmodel_ext.train.progress import Progress, Silent
from bigmodel_ext.train.tasks import Data, Recipe, Task

MODEL_FILE, TEACHER_FILE = "model.safetensors", "teacher.safetensors"


def compress(
    task: Task,
    out: Path,
    *,
    seed: int = 0,
    max_drop: float = 0.01,
    cost: str = "latency",
    quick: bool = False,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the task's teacher, run :func:`pipeline.run.compress` on it, and fill the folder `out`: model.safetensors,
    report.json, report.md and plots. The folder changes only at the end and only if all went well.

    Args:
        cost: what to make as small as the budget allows: "latency" or "bytes".
        state: a folder to keep the run's state in, so that a killed one goes on where it was; its files are
            removed at the end.

    Returns:
        the report, as in report.json.

    Raises:
        ValueError: max_drop is outside [0, 1], seed is negative, `out` can't be written, or `state` holds another
            run's; before any work.
        NonFiniteLossError: a loss became NaN or infinite.
        RuntimeError: the saved model could not be reloaded.
    """
    if not 0.0 <= max_drop <= 1.0:
        raise ValueError(f"max_drop must be in [0, 1], got {max_drop}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    output.usable_folder(out)
    progress = progress or Silent()
    recipe = task.quick if quick else task.recipe
    start = time.perf_counter()
    progress.note(
        f"task {task.name}, seed {seed}, at most {max_drop:g} ({task.drop_type}) of {task.metric.name} to lose"
    )
    job = _Job(task, recipe, task.load(seed), seed, progress)
    teacher = job.teacher(state)
    result = job.compress(teacher, max_drop, cost, state)
    model, settings = result.model, job.settings(result)
    with output.staging(out) as folder:
        checkpoint.save_model(model, folder / MODEL_FILE)
        progress.note("saved; reloading in a fresh process")
        batch = job.data.test.inputs[: recipe.latency_batch]
        reloaded = reload.check(task.name, settings, model, folder / MODEL_FILE, job.data.test, len(batch), folder)
        with measure.threads(1):
            explanation = convert.explain(model, batch=_rows(model, batch))
        stages = _stages(job, result, batch)
        results = {
            "task": task.name,
            "metric": task.metric.name,
            "seed": seed,
            "max_drop": max_drop,
            "drop_type": task.drop_type,
            "quick": quick,
            "hardware": _hardware(explanation),
            "data": {name: len(getattr(job.data, name)) for name in ("train", "validation", "test")},
            "baseline": stages[0],
            "stages": stages[1:],
            "floor": least_score(stages[0]["score"], max_drop, task.drop_type),
            "validation_floor": least_score(stages[0]["validation_score"], max_drop, task.drop_type),
            "compressed": _compressed(stages, max_drop, task.drop_type, settings),
            "layers": report.layers(stages[-1]["details"], explanation),
            "reloaded": reloaded,
            "seconds": round(time.perf_counter() - start, 1),
        }
        report.write(results, task.metric.show, folder)
        plots.write(results, task.metric.show, folder)
    if state is not None:
        output.remove_files(state, TEACHER_FILE, pipeline.JOURNAL_FILE)
    return results


@dataclass(frozen=True)
class _Job:
    task: Task
    recipe: Recipe
    data: Data
    seed: int
    progress: Progress

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.task.build(settings)

    def teacher(self, state: Path | None) -> nn.Module:
        """Trained, or the one that a killed run left."""
        file = None if state is None else output.usable_folder(state) / TEACHER_FILE
        model = self.build(self.recipe.teacher)
        if file is not None and file.exists():
            return checkpoint.load_model(model, file).eval()
        loss, config = CrossEntropy(self.recipe.label_smoothing), self.recipe.train_teacher
        augment = Augment(self.recipe.augment, self.seed)
        with self.progress.stage("teacher", config.epochs) as advance, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            fit(
                model, self.data.train, loss, config,
                seed=10 * self.seed, augment=augment, on_epoch=advance, stage="teacher",
            )  # fmt: skip
        if file is not None:
            checkpoint.save_model(model, file)
        return model

    def compress(self, teacher: nn.Module, max_drop: float, cost: str, state: Path | None) -> pipeline.Result:
        recipe = self.recipe
        loss = Distillation(teacher, recipe.temperature, recipe.soft_weight, recipe.feature_weight)
        students = {told(settings): partial(self.build, settings) for settings in recipe.students}
        kinds = forms(("int8", "int8_sparse"), recipe.sparsities)
        steps: tuple[Step, ...] = (
            Distill(students, recipe.train_student),
            ChooseLayers(
                kinds, recipe.prune_student, recipe.trials, prune_fn=lambda module, fqn: self.task.prunable(fqn)
            ),
        )
        return pipeline.compress(
            teacher, self.data.train, lambda model: self.task.metric(model, self.data.validation),
            max_drop=max_drop, drop_type=self.task.drop_type, constraints={cost: None}, steps=steps, loss=loss,
            augment=recipe.augment,
            example_inputs=_batch(self.data.train, recipe.latency_batch), folder=state, seed=self.seed,
            progress=self.progress,
        )  # fmt: skip

    def settings(self, result: pipeline.Result) -> Mapping[str, Any]:
        """What Task.build needs for the architecture of the result."""
        chosen = result.stages[1].setting
        return next((s for s in self.recipe.students if told(s) == chosen), self.recipe.teacher)


def told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _batch(examples: Examples, size: int) -> Tensor:
    """A batch to time with: training examples, over again if they are too few."""
    return examples.inputs[torch.arange(size) % len(examples)]


def _rows(model: nn.Module, batch: Tensor) -> int:
    """The most rows of activations that a linear layer sees."""
    rows: list[int] = [1]
    linear = {fqn: module for fqn, module in model.named_modules() if isinstance(module, nn.Linear)}
    observe(model, lambda m: m(batch), linear, lambda fqn, layer, x, y: rows.append(x.numel() // x.shape[-1]))
    return max(rows)


def _stages(job: _Job, result: pipeline.Result, batch: Tensor) -> list[dict[str, Any]]:
    """The pipeline's report entries, timed on held-out examples and with the score on them."""
    timed = measure.latencies({f"{i}": stage.model for i, stage in enumerate(result.stages)}, batch)
    entries = [
        {
            **entry,
            **timed[f"{i}"],
            "batch": len(batch),
            "validation_score": entry["score"],
            "score": job.task.metric(stage.model, job.data.test),
        }
        for i, (entry, stage) in enumerate(zip(result.report.data["stages"], result.stages, strict=True))
    ]
    entries[0] |= {"name": "teacher", "setting": told(job.recipe.teacher)}
    return entries


def _compressed(
    stages: list[dict[str, Any]], max_drop: float, drop_type: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The last stage's entry, and how it compares with the baseline."""
    first, last = stages[0], stages[-1]
    return {
        **{key: value for key, value in last.items() if key not in ("attempts", "rolled_back", "details")},
        "settings": dict(settings),
        "drop": first["score"] - last["score"],
        "within_max_drop": last["score"] >= least_score(first["score"], max_drop, drop_type) - 1e-9,
        "times_smaller": first["bytes"] / last["bytes"],
        "times_faster": last["speedup"],
    }


def _hardware(explanation: convert.Explanation) -> dict[str, Any]:
    isas = sorted({row.isa for row in explanation.layers if row.isa})
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": isas[0] if isas else None,
        "training_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
