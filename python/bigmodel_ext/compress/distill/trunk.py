"""One trunk shared by several tasks, a head for each (Caruana 1997), each with a teacher of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.distill.capture import call, capture_with, find, unwrapped
from bigmodel_ext.compress.distill.distillation import DistillationLoss
from bigmodel_ext.compress.distill.pairs import checked_weight


class SharedTrunk(nn.Module):
    """``{task: heads[task](trunk(inputs))}``: parameters shared between tasks.

    Args:
        trunk: any module; what it returns goes to each head.
        heads: {task: module}; names without dots.

    Raises:
        ValueError: no heads, or a name that a submodule can't have.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads must name at least one task")
        bad = [name for name in heads if not name or "." in name]
        if bad:
            raise ValueError(f"a task's name must not be empty or hold a dot, got {bad[0]!r}")
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Any, tasks: Iterable[str] | None = None) -> dict[str, Any]:
        """The outputs of the tasks' heads (default: all), the trunk run once.

        Raises:
            ValueError: a task that has no head.
        """
        chosen = tuple(self.heads) if tasks is None else tuple(tasks)
        self._known(chosen)
        features = call(self.trunk, inputs)
        return {task: self.heads[task](features) for task in chosen}

    def only(self, task: str) -> nn.Module:
        """Trunk and one head as a model of its own, which shares their weights: to evaluate or deploy one task."""
        self._known((task,))
        return nn.Sequential(self.trunk, self.heads[task])

    def _known(self, tasks: Iterable[str]) -> None:
        unknown = [task for task in tasks if task not in self.heads]
        if unknown:
            raise ValueError(f"task must be one of {', '.join(self.heads)}, got {unknown[0]!r}")


class TrunkLoss(nn.Module):
    """``sum over tasks w_t * L_t`` of a `SharedTrunk`, with w_t fixed, or learned: ``exp(-s_t) L_t + s_t / 2``, s_t =
    log sigma_t^2 of the task's noise, trained with the student (Kendall, Gal & Cipolla 2018, their form for
    classification). There the best weight of a loss is 1 / (2 L_t): hard tasks do not drown easy ones.

    Args:
        losses: {task: DistillationLoss}, each with its own teacher, which gets the task's inputs. Student's names are
            the SharedTrunk's ("trunk.blocks.1", "heads.parity"), but "" is the output of the task's head.
        weights: {task: weight}, 1 where a task is missing, or "uncertainty".

    Raises:
        ValueError: no losses, a weight for an unknown task, or one that is negative or not finite.
    """

    def __init__(
        self, losses: Mapping[str, DistillationLoss], weights: Mapping[str, float] | str | None = None
    ) -> None:
        super().__init__()
        if not losses:
            raise ValueError("losses must name at least one task")
        self.losses = nn.ModuleDict(losses)
        self.log_variances: nn.ParameterDict | None = None
        self._weights = dict.fromkeys(losses, 1.0)
        if weights == "uncertainty":
            self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in losses})
        elif isinstance(weights, str):
            raise ValueError(f"weights must be a mapping or 'uncertainty', got {weights!r}")
        else:
            for task, weight in (weights or {}).items():
                if task not in losses:
                    raise ValueError(f"weights must be for {', '.join(losses)}, got {task!r}")
                self._weights[task] = checked_weight(weight)
        self._parts: dict[str, Tensor] = {}

    @property
    def parts(self) -> dict[str, float]:
        """The last step's ``task/part`` before the task's weight, and each task's ``task/weight``."""
        parts = {name: float(value) for name, value in self._parts.items()}
        return parts | {f"{task}/weight": weight for task, weight in self.weights.items()}

    @property
    def weights(self) -> dict[str, float]:
        if self.log_variances is None:
            return dict(self._weights)
        return {task: math.exp(-float(s.detach())) for task, s in self.log_variances.items()}

    def forward(self, model: nn.Module, inputs: Any, targets: Mapping[str, Any] | Tensor | None = None) -> Tensor:
        """All tasks on the same inputs, the trunk run once.

        Args:
            targets: {task: targets}, or [B, tasks] with a column for each of `losses` in their order.

        Raises:
            ValueError: targets are missing for a task, or have another number of columns; and as `DistillationLoss`.
        """
        return self.on(model, {task: (inputs, self._of(task, targets)) for task in self.losses})

    def _of(self, task: str, targets: Mapping[str, Any] | Tensor | None) -> Any:
        if targets is None:
            return None
        names = list(self.losses)
        if isinstance(targets, Tensor):
            if targets.dim() != 2 or targets.shape[1] != len(names):
                raise ValueError(
                    f"targets must be [B, {len(names)}], a column for each of {', '.join(names)}, "
                    f"got {list(targets.shape)}"
                )
            return targets[:, names.index(task)]
        if task not in targets:
            raise ValueError(f"targets must have each of {', '.join(names)}, got {', '.join(targets)}")
        return targets[task]

    def on(self, model: nn.Module, batches: Mapping[str, tuple[Any, Any]]) -> Tensor:
        """A step on {task: (inputs, targets)}, of some or all tasks, from loaders of their own (see `together`). Tasks
        given the very same inputs share one pass of the trunk.

        Raises:
            ValueError: no batches, an unknown task, or a model that is no SharedTrunk; and as `DistillationLoss`.
        """
        inner = unwrapped(model)
        if not isinstance(inner, SharedTrunk):
            raise ValueError(f"the student must be a SharedTrunk, got {type(inner).__name__}")
        unknown = [task for task in batches if task not in self.losses]
        if unknown or not batches:
            raise ValueError(f"batches must be for {', '.join(self.losses)}, got {', '.join(batches) or 'none'}")
        groups: dict[int, list[str]] = {}
        for task, (inputs, _) in batches.items():
            groups.setdefault(id(inputs), []).append(task)
        known = {task: self._loss(task).teach(inputs) for task, (inputs, _) in batches.items()}
        values: dict[str, Tensor] = {}
        for tasks in groups.values():
            seen = self._see(model, tasks, batches[tasks[0]][0])
            for task in tasks:
                own = {name: seen[_on_trunk(name, task)] for name in self._loss(task).student_names}
                values[task] = self._loss(task).total(model, own, known[task], *batches[task])
        self._parts = {f"{t}/{name}": part for t in batches for name, part in self._loss(t)._parts.items()}
        return torch.stack([self._weighted(task, value) for task, value in values.items()]).sum()

    def _loss(self, task: str) -> DistillationLoss:
        loss = self.losses[task]
        assert isinstance(loss, DistillationLoss)
        return loss

    def _see(self, model: nn.Module, tasks: list[str], inputs: Any) -> dict[str, Tensor]:
        names = [_on_trunk(name, task) for task in tasks for name in self._loss(task).student_names]
        find(model, names, "student")
        return capture_with(model, names, partial(model, inputs, tasks=tasks), "student")

    def _weighted(self, task: str, value: Tensor) -> Tensor:
        if self.log_variances is None:
            return self._weights[task] * value
        s = self.log_variances[task]
        return torch.exp(-s) * value + s / 2


def _on_trunk(name: str, task: str) -> str:
    """A name as the SharedTrunk has it."""
    return f"heads.{task}{name}" if not name or name[0] in "[:" else name


def together(loaders: Mapping[str, Iterable[tuple[Any, Any]]]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Steps for `TrunkLoss.on`: a batch of each loader per step, until the longest ends; shorter ones begin again.

    Raises:
        ValueError: no loaders, or one that gives nothing.
    """
    if not loaders:
        raise ValueError("loaders must name at least one task")
    iterators = {task: iter(loader) for task, loader in loaders.items()}
    going, first = set(loaders), True
    while True:
        batches = {}
        for task, loader in loaders.items():
            try:
                batches[task] = next(iterators[task])
            except StopIteration:
                if first:
                    raise ValueError(f"the loader of {task!r} gives no batches") from None
                going.discard(task)
                if not going:
                    return
                iterators[task] = iter(loader)
                try:
                    batches[task] = next(iterators[task])
                except StopIteration:
                    raise ValueError(f"the loader of {task!r} gives batches only once; it must begin again") from None
        first = False
        yield batches
