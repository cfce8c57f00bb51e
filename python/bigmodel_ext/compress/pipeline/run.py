"""compress(model, ...): prune, distill and quantize a user's model under one accuracy budget."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress import measure
from bigmodel_ext.compress.controller.budget import Budget, ValidationFn
from bigmodel_ext.compress.controller.journal import Journal
from bigmodel_ext.compress.distill import Distillation
from bigmodel_ext.compress.output import usable_folder
from bigmodel_ext.compress.pipeline import layers, quantized, structure, students
from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.report import Report, summary
from bigmodel_ext.compress.pipeline.steps import (
    ChooseLayers,
    Distill,
    PruneStructure,
    Quantize,
    Step,
    check_order,
)
from bigmodel_ext.train.loop import Batches, Examples, Loss
from bigmodel_ext.train.progress import Progress, Silent

COSTS = ("latency", "bytes")
CALIBRATION = 256  # examples that calibration looks at
JOURNAL_FILE = "journal.jsonl"

# A step's runner gives alternatives, each a stage; most give one.
_RUNNERS: Mapping[type, Callable[[Context, Any, Stage], Sequence[Stage]]] = {
    Distill: students.run,
    PruneStructure: structure.run,
    ChooseLayers: layers.run,
    Quantize: quantized.run,
}


@dataclass(frozen=True)
class Result:
    """What `compress` found.

    Attributes:
        model: the compressed model, in eval mode; ``save_model`` writes it.
        plan: JSON: what each step did ({"step", "setting", and for ChooseLayers each layer's form}).
        report: str() is a table; ``report.write(folder)`` writes report.json, report.md and plots.
        fresh: builds the architecture that ``load_model`` brings to the saved model's form.
    """

    model: nn.Module
    plan: list[dict[str, Any]]
    report: Report
    fresh: Callable[[], nn.Module]
    stages: tuple[Stage, ...]


def compress(
    model: nn.Module,
    train_loader: Batches | Examples,
    validation_fn: ValidationFn,
    *,
    max_drop: float = 0.01,
    drop_type: str = "absolute",
    constraints: Mapping[str, float | str | None] | None = None,
    steps: Sequence[Step] = (ChooseLayers(),),
    loss: Loss | None = None,
    augment: Mapping[str, float] | None = None,
    example_inputs: Tensor | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Make a model smaller and faster, at least cost, while ``validation_fn`` loses at most `max_drop`.

    Each step of `steps` tries settings on copies of the model and keeps what holds the budget; what breaks it is rolled
    back, so the result is at worst the model as it was. The budget is the same for all steps (but see
    PruneStructure.shares) and counts from the original model. Latencies are measured here, on one thread, with the
    kernels that the layers will run.

    Args:
        model: any module that maps a batch of inputs to a tensor (or to something with `logits`); it is not changed.
        train_loader: batches (inputs, targets), iterated again and again (a DataLoader, say), or
            :class:`train.loop.Examples`. Without training steps only its inputs are used, for calibration; steps that
            train need its length. Who shuffles by a generator of their own must seed it alike when a run is resumed.
        validation_fn: validation_fn(model) -> float, higher is better, on data that training does not see.
        max_drop, drop_type: see :class:`compress.controller.Budget`.
        constraints: {"latency": seconds} or {"bytes": number}: what to make as small as the budget allows; with a value
            (or "40%" of the original's) it is enough to reach that. Default: {"latency": None}, as small as can be.
        steps: of :mod:`compress.pipeline.steps`, in the order they are done.
        loss: loss(model, inputs, targets) -> scalar, for steps that train. Default: distillation from `model` together
            with cross-entropy (:class:`distill.Distillation`).
        augment: strengths by name, as :class:`train.augment.Augment` has them, for images that are trained on.
        example_inputs: the batch that latencies are measured with. Default: the first of train_loader.
        folder: where the run's state is kept, so that one that was killed goes on where it was and ends with the same
            plan. None: nothing is written.
        seed: of everything random.
        progress: told what is done.

    Returns:
        a `Result`.

    Raises:
        TypeError, ValueError: an argument is not as above; an order of steps can't work (the message says why);
            validation_fn returned NaN, or changed the model; calibration never reached a layer; `folder` holds another
            run's state.
        NonFiniteLossError: a training loss became NaN or infinite.
    """
    budget = Budget(validation_fn, max_drop, drop_type)
    check_order(steps)
    cost, wanted = _constraint(constraints)
    original = copy.deepcopy(model).eval()
    _check_loader(train_loader, steps)
    calibration = _calibration(train_loader, seed)
    example = calibration[0] if example_inputs is None else example_inputs
    path = None if folder is None else usable_folder(Path(folder))
    about = {
        "model": _digest(original.state_dict()),
        "calibration data": _digest({str(i): batch for i, batch in enumerate(calibration)}),
        "max_drop": max_drop, "drop_type": drop_type, "seed": seed,
        "constraints": {cost: wanted}, "steps": [_told(step) for step in steps],
        "augment": _told(augment), "example_inputs": list(example.shape),
    }  # fmt: skip
    journal = Journal(None if path is None else path / JOURNAL_FILE, about)
    context = Context(
        budget, train_loader, loss or Distillation(original), augment or {}, cost, None, calibration, example, seed,
        journal, path, progress or Silent(),
    )  # fmt: skip
    context.baseline = float(journal.recall("baseline", lambda: _baseline(budget, original)))
    context.target = _target(context, original, wanted)

    def fresh() -> nn.Module:
        return copy.deepcopy(original)

    stages = _follow(context, steps, [Stage("original", original, fresh, "as given", context.baseline)])
    report = summary(context, stages)
    context.clean()
    plan = [
        {"step": type(step).__name__, "setting": stage.setting, "score": stage.score, "layers": _plan(stage)}
        for step, stage in zip(steps, stages[1:], strict=True)
    ]
    last = stages[-1]
    return Result(last.model, plan, report, last.fresh, tuple(stages))


def _follow(context: Context, steps: Sequence[Step], stages: list[Stage], path: str = "") -> list[Stage]:
    """The stages to the end; where a step has alternatives, those that follow from the one that ends cheapest."""
    done = len(stages) - 1
    if done == len(steps):
        return stages
    step = steps[done]
    context.progress.note(f"{type(step).__name__}:")
    context.begin(f"{done}-{step.name}{path}")
    found = _RUNNERS[type(step)](context, step, stages[-1])
    if len(found) == 1:
        return _follow(context, steps, [*stages, *found], path)
    ends = []
    for number, stage in enumerate(found, 1):
        context.progress.note(f"After {stage.setting}:")
        ends.append(_follow(context, steps, [*stages, stage], f"{path}-{number}"))
    costs = _costs(context, [end[-1].model for end in ends], f"costs of {done}-{step.name}{path}")
    target = context.target or 0.0  # what is below it is as good as what is at it
    return min(zip(costs, ends, strict=True), key=lambda pair: (max(pair[0], target), -pair[1][-1].score))[1]


def _costs(context: Context, models: Sequence[nn.Module], name: str) -> list[float]:
    if context.cost == "bytes":
        return [float(measure.state_bytes(model)) for model in models]

    def timed() -> list[float]:
        named = {str(i): model for i, model in enumerate(models)}
        return [1e-3 * row["latency_ms"] for row in measure.latencies(named, context.example).values()]

    return [float(cost) for cost in context.journal.recall(name, timed)]


def _baseline(budget: Budget, original: nn.Module) -> float:
    before = _digest(original.state_dict())
    score = budget.score(original)
    if _digest(original.state_dict()) != before:
        raise ValueError("validation_fn changed the model that it was given: its weights or buffers are other ones now")
    return score


def _plan(stage: Stage) -> dict[str, Any]:
    return {fqn: own["form"] for fqn, own in stage.details.get("layers", {}).items()}


def _constraint(constraints: Mapping[str, float | str | None] | None) -> tuple[str, float | str | None]:
    constraints = {"latency": None} if constraints is None else constraints
    if len(constraints) != 1 or next(iter(constraints)) not in COSTS:
        raise ValueError(f"constraints must have one key, {' or '.join(COSTS)}, got {dict(constraints)!r}")
    ((cost, wanted),) = constraints.items()
    if isinstance(wanted, str):
        share = wanted.removesuffix("%")
        if not wanted.endswith("%") or not share.replace(".", "", 1).isdigit() or not 0 < float(share) <= 100:
            raise ValueError(f"constraints[{cost!r}] must be a number, or a share as '40%', got {wanted!r}")
    elif wanted is not None and not (math.isfinite(wanted) and wanted > 0):
        raise ValueError(f"constraints[{cost!r}] must be finite and above 0, got {wanted}")
    return cost, wanted


def _target(context: Context, original: nn.Module, wanted: float | str | None) -> float | None:
    if not isinstance(wanted, str):
        return wanted

    def whole() -> float:
        if context.cost == "bytes":
            return float(measure.state_bytes(original))
        timed = measure.latencies({"original": original}, context.example)
        return 1e-3 * timed["original"]["latency_ms"]

    return float(wanted.removesuffix("%")) / 100 * float(context.journal.recall("original's cost", whole))


def _check_loader(data: Batches | Examples, steps: Sequence[Step]) -> None:
    if isinstance(data, Iterator):
        raise TypeError(f"train_loader must be iterable again and again, got a {type(data).__name__}")
    if isinstance(data, Examples) or all(getattr(step, "train", None) is None for step in steps):
        return
    try:
        len(data)
    except TypeError as error:
        raise TypeError(f"train_loader must have a length for steps that train: {error}") from error


def _calibration(data: Batches | Examples, seed: int) -> list[Tensor]:
    """Batches of inputs; a loader that shuffles by torch's generator gives the same in each run."""
    if isinstance(data, Examples):
        return list(data.inputs[:CALIBRATION].split(64))
    found, seen = list[Tensor](), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in data:
            found.append(_inputs(batch))
            seen += len(found[-1])
            if seen >= CALIBRATION:
                break
    if not found:
        raise ValueError("train_loader must yield at least one batch, got none")
    return found


def _inputs(batch: Any) -> Tensor:
    if isinstance(batch, Iterable) and not isinstance(batch, (Tensor, Mapping, str)):
        pair = list(batch)
        if len(pair) == 2 and isinstance(pair[0], Tensor):
            return pair[0]
    raise TypeError(f"train_loader must yield (inputs, targets) with a tensor of inputs, got {type(batch).__name__}")


def _digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, dtypes, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _told(value: Any) -> Any:
    """A step as JSON: what a resumed run must have the same."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, **{f.name: _told(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_told(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__name__)
