"""The step `Quantize`."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.steps import Quantize
from bigmodel_ext.compress.quantize import quantize_


def run(context: Context, step: Quantize, before: Stage) -> Stage:
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
    return context.first_within(step.name, before, tries, "nothing is quantized")


def _worst(context: Context, step: Quantize, before: Stage, share: float) -> set[str]:
    """The names of this share of layers, the largest output error first."""

    def errors() -> dict[str, float]:
        report = quantize_(copy.deepcopy(before.model), step.config, context.forward_loop, step.filter_fn)
        return {row.fqn: row.output_error for row in report.layers if row.output_error is not None}

    found: dict[str, float] = context.recall("output errors", errors)
    return set(sorted(found, key=lambda fqn: -found[fqn])[: round(share * len(found))])
