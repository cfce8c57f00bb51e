"""The step `ChooseLayers`: tables, search, and the model that comes of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from bigmodel_ext import convert
from bigmodel_ext.compress.calibrate import already_converted
from bigmodel_ext.compress.controller import tables
from bigmodel_ext.compress.controller.build import Builder, fits, is_in
from bigmodel_ext.compress.controller.forms import DENSE, Form
from bigmodel_ext.compress.controller.frontier import Point
from bigmodel_ext.compress.controller.search import Search
from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.searching import search_stage
from bigmodel_ext.compress.pipeline.steps import ChooseLayers
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner
from bigmodel_ext.train.loop import total_steps

KINDS = (nn.Linear, nn.Conv2d)


def run(context: Context, step: ChooseLayers, before: Stage) -> list[Stage]:
    model = before.model
    layers = convert.convertible(model, step.filter_fn, KINDS)
    if not layers:
        none = "the model has no linear or Conv2d layer that can be exchanged, or filter_fn chose none"
        raise ValueError(none + already_converted(model))
    builder = Builder(model, layers, context.forward_loop)
    forms = {fqn: _forms(step, fqn, layer) for fqn, layer in layers.items()}
    points = _points(context, model, layers, forms, builder)
    whole = tables.model_cost(model, context.cost, context.example, context.recall)
    fixed = max(0.0, whole - sum(p.cost for own in points.values() for p in own if p.form == DENSE))
    stage = search_stage(
        context, step.name, before, points,
        make=partial(_make, context, step, model, builder), told=told, trials=step.trials, fixed=fixed,
        unchanged="no combination keeps the budget: every layer stays as it was", details=partial(_details, points),
    )  # fmt: skip
    return [stage]


def _forms(step: ChooseLayers, fqn: str, layer: nn.Module) -> list[Form]:
    prunable = step.prune_fn is None or step.prune_fn(layer, fqn)
    return [DENSE, *(f for f in step.forms if f != DENSE and fits(layer, f) and (prunable or not f.sparsity))]


def told(forms: Mapping[str, Form]) -> str:
    """{"a": int8, "b": int8, "c": dense} -> "2 x int8, 1 x fp32"."""
    counts = Counter(map(str, forms.values()))
    return ", ".join(f"{count} x {form}" for form, count in sorted(counts.items()))


def _points(
    context: Context,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    forms: Mapping[str, list[Form]],
    builder: Builder,
) -> dict[str, list[Point[Form]]]:
    context.progress.note(f"  {len(layers)} layers: measuring what each form costs, and what it does to the output")
    if context.cost == "bytes":
        costs = context.recall("bytes", lambda: tables.byte_costs(layers, forms, builder))
    else:
        costs = tables.latency_costs(model, layers, forms, builder, context.example, context.recall)
    harm = context.recall("damages", lambda: tables.damages(model, forms, builder, context.calibration))
    return {
        fqn: [Point(f, c, d) for f, c, d in zip(own, costs[fqn], harm[fqn], strict=True)] for fqn, own in forms.items()
    }


def _make(
    context: Context, step: ChooseLayers, model: nn.Module, builder: Builder, chosen: Mapping[str, Form]
) -> nn.Module:
    model = copy.deepcopy(model)
    if step.train is None:
        builder.prune_(model, chosen)
    else:
        _train(context, step, model, chosen)
    changed = {fqn for fqn, own in chosen.items() if own != DENSE}
    if changed:
        convert.exchange_(
            model, lambda layer, fqn: [builder.convert(fqn, layer, chosen[fqn])], (), partial(is_in, changed), KINDS
        )
    return model


def _train(context: Context, step: ChooseLayers, model: nn.Module, chosen: Mapping[str, Form]) -> None:
    """Prune gradually while the model trains on, each layer to its own share (2:4, which has no shares, at once)."""
    assert step.train is not None
    steps = total_steps(context.data, step.train)
    ratios: dict[str, dict[str, float]] = {}
    for fqn, own in chosen.items():
        if own.granularity is not None:
            ratios.setdefault(own.granularity, {})[fqn] = own.sparsity
    pruners: list[MaskPruner | GradualPruner] = []
    for granularity, own_ratios in ratios.items():
        chosen_layers = partial(is_in, own_ratios)
        if granularity == "2:4":
            masks = MaskPruner(model, granularity=granularity, filter_fn=chosen_layers)
            masks.step()
            pruners.append(masks)
        else:
            masks = MaskPruner(model, granularity=granularity, pruning_ratio_dict=own_ratios, filter_fn=chosen_layers)
            pruners.append(GradualPruner(masks, steps))

    def on_step(done: int) -> None:
        for pruner in pruners:
            pruner(done)

    context.train("layers", model, step.train, on_step)


def _details(
    points: Mapping[str, list[Point[Form]]], search: Search[Form], chosen: Mapping[str, Form]
) -> dict[str, Any]:
    """Each layer's choice and what it could choose from, and what the tables predict along the frontier."""
    layers = {
        fqn: {
            "form": chosen[fqn].as_json(),
            "told": str(chosen[fqn]),
            "options": [{"form": str(p.form), "cost": p.cost, "damage": p.damage} for p in own],
        }
        for fqn, own in points.items()
    }
    combinations = map(search.combination, range(len(search.moves) + 1))
    predicted = [{"cost": search.cost(c), "damage": search.damage(c)} for c in combinations]
    return {"layers": layers, "predicted": predicted}
