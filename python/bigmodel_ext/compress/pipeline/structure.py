"""The step `PruneStructure`."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.pipeline.steps import PruneStructure
from bigmodel_ext.compress.prune.schedule import GradualPruner as StructuredPruner


def run(context: Context, step: PruneStructure, before: Stage) -> Stage:
    def make(ratio: float) -> nn.Module:
        model = copy.deepcopy(before.model)
        pruner = StructuredPruner(
            model,
            context.calibration[0],
            pruning_ratio=ratio,
            **{"forward_loop": context.forward_loop, **step.keywords},
        )
        pruner.step()
        return model if step.train is None else context.train(f"{ratio:.0%} of outputs removed", model, step.train)

    tries = [(f"{ratio:.0%} of channels, neurons and heads removed", partial(make, ratio), before.fresh)
             for ratio in step.ratios]  # fmt: skip
    return context.first_within(step.name, before, tries, "nothing is removed")
