"""The step `Quantize`."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

from torch import nn

from bigmodel_ext.compress.controller.tables import BAD
from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.steps import Quantize
from bigmodel_ext.compress.quantize import quantize_
from bigmodel_ext.nn._compressed import Compressed


def run(context: Context, step: Quantize, before: Stage) -> list[Stage]:
    def make(share: float) -> nn.Module:
        worst = _worst(context, step, before, share) if share else set()

        def chosen(module: nn.Module, fqn: str) -> bool:
            return fqn not in worst and (step.filter_fn is None or step.filter_fn(module, fqn))

        model = copy.deepcopy(before.model)
        quantize_(model, step.config, context.forward_loop, chosen)
        return model

    def told(share: float) -> str:
        return f"the {share:.0%} of layers with the largest output error stay float" if share else "every layer"

    tries = [(told(share), partial(make, share), before.fresh) for share in step.keep_float]
    stage = context.first_within(step.name, before, tries, "nothing is quantized")
    if stage.model is before.model:
        return [stage]
    # A method may leave layers as they are, those that would get slower, say.
    count = len(_compressed(stage.model) - _compressed(before.model))
    return [replace(stage, setting=f"{stage.setting}: {count} quantized")]


def _compressed(model: nn.Module) -> set[str]:
    return {fqn for fqn, module in model.named_modules() if isinstance(module, Compressed)}


def _worst(context: Context, step: Quantize, before: Stage, share: float) -> set[str]:
    """The names of this share of layers, the largest output error first."""

    def errors() -> dict[str, float]:
        report = quantize_(copy.deepcopy(before.model), step.config, context.forward_loop, step.filter_fn)
        return {row.fqn: min(row.output_error, BAD) for row in report.layers if row.output_error is not None}

    found: dict[str, float] = context.recall("output errors", errors)
    return set(sorted(found, key=lambda fqn: -found[fqn])[: round(share * len(found))])
