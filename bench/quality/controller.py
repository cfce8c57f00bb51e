"""The controller against uniform ratios: the latency of what it finds over that of the fastest uniform model that keeps
the same budget. Both choose among the same kernels and reconstructed weights, without training; latencies are of the
whole model, side by side in one process on one thread."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from bigmodel_ext import convert
from bigmodel_ext.compress import ChooseLayers, compress, measure
from bigmodel_ext.compress.controller import Budget
from bigmodel_ext.compress.controller.build import Builder, convert_layer
from bigmodel_ext.compress.controller.forms import DENSE, RATIOS, Form, forms
from bigmodel_ext.train.loop import Examples
from bigmodel_ext.train.tasks import Data, get
from torch import Tensor, nn

from bench.quality._models import digits_vit, text_transformer
from bench.quality._row import Row

MAX_DROP = 0.01
FORMS = forms(("int8", "sparse", "int8_sparse"), RATIOS)
TRIALS = 40


def _uniform(model: nn.Module, batches: list[Tensor], budget: Budget, prunable: set[str]) -> dict[str, nn.Module]:
    """Every uniform model within the budget, by name: each form on all layers; those that may not be pruned in the
    dense form of the same numbers (int8 or float)."""
    layers = convert.convertible(model)
    builder = Builder(model, layers, lambda m: [m(x) for x in batches])
    baseline, found = budget.score(model), {}
    for form in FORMS:
        other = Form("int8") if form.kind.startswith("int8") else DENSE
        chosen = {fqn: form if fqn in prunable or not form.sparsity else other for fqn in layers}
        made = _exchanged(model, chosen, builder)
        if budget.within(budget.score(made), baseline):
            found[str(form)] = made
    return found


def _exchanged(model: nn.Module, chosen: Mapping[str, Form], builder: Builder) -> nn.Module:
    model = copy.deepcopy(model)
    builder.prune_(model, chosen)
    changed = {fqn for fqn, form in chosen.items() if form != DENSE}
    if changed:
        convert.exchange_(model, lambda m, fqn: [convert_layer(m, chosen[fqn])], (), lambda m, fqn: fqn in changed)
    return model.eval()


def _rows(name: str, task_name: str, model: nn.Module, data: Data, batch: Tensor) -> Iterator[Row]:
    task = get(task_name)
    train = Examples(data.train.inputs[:256], data.train.targets[:256])
    budget = Budget(lambda m: task.metric(m, data.validation), MAX_DROP, task.drop_type)
    prunable = {fqn for fqn in convert.convertible(model) if task.prunable(fqn)}
    result = compress(
        model, train, budget.validation_fn, max_drop=MAX_DROP, drop_type=task.drop_type, example_inputs=batch,
        steps=[ChooseLayers(FORMS, trials=TRIALS, prune_fn=lambda m, fqn: task.prunable(fqn))],
    )  # fmt: skip
    batches = [batch, *train.inputs.split(64)]
    uniform = _uniform(model, batches, budget, prunable)
    timed = measure.latencies({"original": model, "ours": result.model, **uniform}, batch, rounds=31)
    best = min(uniform, key=lambda form: timed[form]["latency_ms"])
    yield Row(
        f"{name}, budget {MAX_DROP:g} {task.drop_type}", "latency, ms", timed["ours"]["latency_ms"],
        f"uniform {best}", timed[best]["latency_ms"], factor=0.8,
    )  # fmt: skip


def rows() -> Iterator[Row]:
    model, data = digits_vit()
    yield from _rows("digits ViT", "digits", model, data, data.train.inputs[:256])
    model, data = text_transformer()
    yield from _rows("text transformer", "text", model, data, data.train.inputs[:8])
