"""The step `PruneStructure`: each group of channels, neurons or heads gets its own ratio."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from bigmodel_ext.compress.controller import tables
from bigmodel_ext.compress.controller.frontier import Point
from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.searching import search_stage
from bigmodel_ext.compress.pipeline.steps import PruneStructure
from bigmodel_ext.compress.prune import StructuredPruner

Ratios = Mapping[str, float]  # by the group's name


def run(context: Context, step: PruneStructure, before: Stage) -> list[Stage]:
    """One for each share of the budget; shares that end with the same ratios give one."""
    model = before.model
    groups = _pruner(context, step, copy.deepcopy(model), {}).groups
    context.progress.note(
        f"  {len(groups)} groups of channels, neurons or heads: measuring {len(step.ratios)} ratios each"
    )
    points = {
        name: [Point(0.0, 0.0, 0.0), *(_point(context, step, model, name, ratio) for ratio in step.ratios)]
        for name in groups
    }
    whole = tables.model_cost(model, context.cost, context.example, context.recall)
    found: dict[str, Stage] = {}
    for share in step.shares:
        context.share = share
        if len(step.shares) > 1:
            context.progress.note(f"  with {share:.0%} of max_drop:")
        stage = search_stage(
            context, step.name, before, points,
            make=partial(_make, context, step, model), told=told, trials=step.trials, fixed=whole,
            unchanged="nothing is removed", details=lambda search, chosen: {"groups": dict(chosen)},
        )  # fmt: skip
        found.setdefault(stage.setting, stage)
    return [*found.values()]


def told(ratios: Ratios) -> str:
    """{"a": 0.5, "b": 0.0} -> "a 50%"."""
    return ", ".join(f"{name} {ratio:.0%}" for name, ratio in ratios.items() if ratio) or "nothing removed"


def _pruner(context: Context, step: PruneStructure, model: nn.Module, ratios: Ratios) -> Any:
    keywords = {"forward_loop": context.forward_loop, **step.keywords}
    return StructuredPruner(
        model, context.example, step.importance, 0.0, {n: r for n, r in ratios.items() if r}, **keywords
    )


def _make(context: Context, step: PruneStructure, model: nn.Module, ratios: Ratios) -> nn.Module:
    model = copy.deepcopy(model)
    _pruner(context, step, model, ratios).step()
    return model if step.train is None else context.train("structure", model, step.train)


def _point(context: Context, step: PruneStructure, model: nn.Module, name: str, ratio: float) -> Point[float]:
    """The model with only this group smaller: what it costs less, and what it does to the output."""

    def measured() -> list[float]:
        smaller = copy.deepcopy(model)
        _pruner(context, step, smaller, {name: ratio}).step()
        change = tables.model_change(model, smaller, context.cost, context.example)
        return [change, tables.damage(model, smaller, context.calibration)]

    cost, damage = context.recall(f"{name} {ratio}", measured)
    return Point(ratio, cost, damage)
