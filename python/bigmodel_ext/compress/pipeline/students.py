"""The step `Distill`."""

from __future__ import annotations

from functools import partial

from torch import nn

from bigmodel_ext.compress.pipeline.context import Context, Make, Stage
from bigmodel_ext.compress.pipeline.steps import Distill


def run(context: Context, step: Distill, before: Stage) -> list[Stage]:
    loss = None if step.loss is None else step.loss(before.model)

    def make(name: str, build: Make) -> nn.Module:
        return context.train(f"student {name}", build(), step.train, loss=loss)

    tries = [(name, partial(make, name, build), build) for name, build in step.students.items()]
    return [context.first_within(step.name, before, tries, "the model is its own student")]
