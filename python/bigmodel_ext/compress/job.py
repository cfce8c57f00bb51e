"""The main job: train, compress, save, reload elsewhere, check, report."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from bigmodel_ext import checkpoint, convert
from bigmodel_ext._machine import cpu_name
from bigmodel_ext.compress import measure, output, plots, reload, report, stages
from bigmodel_ext.train.loop import accuracy
from bigmodel_ext.train.progress import Progress, Silent
from bigmodel_ext.train.tasks import Task

MODEL_FILE = "model.safetensors"


def compress(
    task: Task,
    out: Path,
    *,
    seed: int = 0,
    max_drop: float = 0.01,
    quick: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the job on a task and fill the folder `out`: model.safetensors, report.json, report.md and two plots.

    The folder changes only at the end and only if all went well.

    Returns:
        the report, as in report.json.

    Raises:
        ValueError: max_drop is outside [0, 1], seed is negative, or `out` can't be written; before any work.
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
    progress.note(f"task {task.name}, seed {seed}, at most {max_drop:g} of accuracy to lose")
    outcome = stages.run(task, recipe, seed=seed, max_drop=max_drop, progress=progress)
    with output.staging(out) as folder:
        final = outcome.stages[-1]
        checkpoint.save_model(final.model, folder / MODEL_FILE)
        progress.note("saved; reloading in a fresh process")
        batch = outcome.data.test.inputs[: recipe.latency_batch]
        reloaded = reload.check(
            task.name, final.settings, final.model, folder / MODEL_FILE, outcome.data.test, len(batch), folder
        )
        with measure.threads(1):
            rows = {choice.fqn: choice.rows for choice in outcome.choices}
            explanation = convert.explain(final.model, batch=max(rows.values()))
        entries = _entries(outcome, batch)
        results = {
            "task": task.name,
            "seed": seed,
            "max_drop": max_drop,
            "quick": quick,
            "hardware": _hardware(explanation),
            "data": {name: len(getattr(outcome.data, name)) for name in ("train", "validation", "test")},
            "baseline": entries[0],
            "stages": entries[1:],
            "compressed": _compressed(entries, max_drop),
            "layers": report.layers(outcome.choices, explanation),
            "reloaded": reloaded,
            "seconds": round(time.perf_counter() - start, 1),
        }
        report.write(results, folder)
        plots.write(results, folder)
    return results


def _entries(outcome: stages.Outcome, batch: torch.Tensor) -> list[dict[str, Any]]:
    """A report entry for each stage, timed side by side; accuracy is that on the held-out test."""
    timed = measure.latencies({stage.name: stage.model for stage in outcome.stages}, batch)
    return [
        {
            "name": stage.name,
            "accuracy": accuracy(stage.model, outcome.data.test),
            "validation_accuracy": stage.validation_accuracy,
            "bytes": measure.state_bytes(stage.model),
            "parameters": measure.parameters(stage.model),
            "nonzero": measure.nonzero_weights(stage.model),
            "latency_ms": timed[stage.name]["latency_ms"],
            "speedup": timed[stage.name]["speedup"],
            "batch": len(batch),
            "threads": 1,
            "settings": dict(stage.settings),
            "setting": stage.setting,
            "rolled_back": stage.rolled_back,
            "attempts": [vars(attempt) for attempt in stage.attempts],
        }
        for stage in outcome.stages
    ]


def _compressed(entries: list[dict[str, Any]], max_drop: float) -> dict[str, Any]:
    """The last stage's entry, and how it compares with the baseline."""
    first, last = entries[0], entries[-1]
    drop = first["accuracy"] - last["accuracy"]
    return {
        **{key: value for key, value in last.items() if key not in ("attempts", "rolled_back")},
        "accuracy_drop": drop,
        "within_max_drop": drop <= max_drop + 1e-9,
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
