"""The controller against uniform ratios: the latency of what it finds over that of the fastest uniform model that keeps
the same budget. Both remove structure (the same share of every group's channels, neurons and heads, or each group its
own) and then give the layers forms (all the same, or each its own), with the same ratios to choose from, the same
kernels, importance and reconstruction, and without training. Latencies are of whole models, side by side in one process
on one thread."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from bigmodel_ext import convert
from bigmodel_ext.compress import ChooseLayers, PruneStructure, compress, measure
from bigmodel_ext.compress.controller import Budget
from bigmodel_ext.compress.controller.build import Builder
from bigmodel_ext.compress.controller.forms import DENSE, RATIOS, Form, forms
from bigmodel_ext.compress.prune import StructuredPruner
from bigmodel_ext.train.loop import Examples
from bigmodel_ext.train.tasks import Data, get
from torch import Tensor, nn

from bench.quality._models import digits_vit, text_transformer
from bench.quality._row import Row

MAX_DROP = 0.01
FORMS = forms(("int8", "sparse", "int8_sparse"), RATIOS)
EIGHTHS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # shares of structure that may go
QUARTERS = EIGHTHS[1::2]
BUDGET_SHARES = (0.5, 0.75, 1.0)
TRIALS = 64  # of each step; the uniform models are up to eight shares x fourteen forms


def _uniform(
    model: nn.Module, batches: list[Tensor], budget: Budget, prunable: set[str], shares: tuple[float, ...]
) -> dict[str, nn.Module]:
    """Every uniform model within the budget, by name: each share of structure removed, with each form on all layers;
    those that may not be pruned in the dense form of the same numbers (int8 or float)."""
    baseline, found = budget.score(model), {}

    def forward_loop(m: nn.Module) -> None:
        for x in batches:
            m(x)

    for share in (0.0, *shares):
        smaller = copy.deepcopy(model)
        if share:
            StructuredPruner(smaller, batches[0], "reconstruction", share, forward_loop=forward_loop).step()
        if not budget.within(budget.score(smaller), baseline):
            break  # larger shares lose more
        layers = convert.convertible(smaller)
        builder = Builder(smaller, layers, forward_loop)
        for form in FORMS:
            other = Form("int8") if form.kind.startswith("int8") else DENSE
            chosen = {fqn: form if fqn in prunable or not form.sparsity else other for fqn in layers}
            made = _exchanged(smaller, chosen, builder)
            if budget.within(budget.score(made), baseline):
                found[f"{form}, {share:.1%} of structure removed"] = made
    return found


def _exchanged(model: nn.Module, chosen: Mapping[str, Form], builder: Builder) -> nn.Module:
    model = copy.deepcopy(model)
    builder.prune_(model, chosen)
    changed = {fqn for fqn, form in chosen.items() if form != DENSE}
    if changed:
        convert.exchange_(
            model, lambda m, fqn: [builder.convert(fqn, m, chosen[fqn])], (), lambda m, fqn: fqn in changed
        )
    return model.eval()


def _rows(
    task_name: str, trained: tuple[nn.Module, Data], example: int, calibration: int, shares: tuple[float, ...]
) -> Iterator[Row]:
    """`example`, `calibration`: how many examples latencies are measured with, and weights reconstructed on."""
    model, data = trained
    batch = data.train.inputs[:example]
    task = get(task_name)
    train = Examples(data.train.inputs[:calibration], data.train.targets[:calibration])
    budget = Budget(lambda m: task.metric(m, data.validation), MAX_DROP, task.drop_type)
    prunable = {fqn for fqn in convert.convertible(model) if task.prunable(fqn)}
    result = compress(
        model, train, budget.validation_fn, max_drop=MAX_DROP, drop_type=task.drop_type, example_inputs=batch,
        steps=[
            PruneStructure(shares, trials=TRIALS, shares=BUDGET_SHARES),
            ChooseLayers(FORMS, trials=TRIALS, prune_fn=lambda m, fqn: task.prunable(fqn)),
        ],
    )  # fmt: skip
    batches = [batch, *train.inputs.split(64)]
    uniform = _uniform(model, batches, budget, prunable, shares)
    timed = measure.latencies({"original": model, "ours": result.model, **uniform}, batch, rounds=31)
    best = min(uniform, key=lambda form: timed[form]["latency_ms"])
    yield Row(
        f"{task_name}, budget {MAX_DROP:g} {task.drop_type}", "latency, ms", timed["ours"]["latency_ms"],
        f"uniform: {best}", timed[best]["latency_ms"], factor=0.8,
    )  # fmt: skip


def rows() -> Iterator[Row]:
    yield from _rows("digits", digits_vit(), 256, 256, EIGHTHS)
    yield from _rows("text", text_transformer(), 8, 48, QUARTERS)
