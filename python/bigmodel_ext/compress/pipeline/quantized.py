"""The step `Quantize`."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.steps import Quantize
from bigmodel_ext.compress.quantize import quantize_


def run(context: Context, step: Quantize, before: Stage) -> Stage:
    errors: dict[str, float] = {}

    def make(share: float) -> nn.Module:
        worst = set(sorted(errors, key=lambda fqn: -errors[fqn])[: round(share * len(errors))])

        def chosen(module: nn.Module, fqn: str) -> bool:
            return fqn not in worst and (step.filter_fn is None or step.filter_fn(module, fqn))

        model = copy.deepcopy(before.model)
        report = quantize_(model, step.config, context.forward_loop, chosen)
        errors.update({row.fqn: row.error for row in report.layers if row.error is not None})
        return model

    def told(share: float) -> str:
        return f"the {share:.0%} of layers with the largest output error stay float" if share else "every layer"

    tries = [(told(share), partial(make, share), before.fresh) for share in step.keep_float]
    return context.first_within(step.name, before, tries, "nothing is quantized")
