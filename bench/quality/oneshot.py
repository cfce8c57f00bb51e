"""One-shot pruning without retraining: how much the loss rises on held-out data, by `reconstruct_` and by others.

The acceptance: at 60 % zeros at most half of what plain magnitude pruning (torch.nn.utils.prune) costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from bigmodel_ext.compress.calibrate import layers_of
from bigmodel_ext.compress.prune import MaskPruner, reconstruct_
from bigmodel_ext.train import tasks
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, evaluating, fit
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from bench.quality._row import Row

RATIOS = (0.5, 0.6, 0.7)
SETTINGS = {
    "digits": {"width": 128, "depth": 3, "heads": 4, "mlp": 512},
    "text": {"width": 128, "depth": 2, "heads": 4, "kv_heads": 2, "mlp": 384},
}
TRAINING = {
    "digits": TrainConfig(epochs=20, batch_size=32, learning_rate=1.5e-3),
    "text": TrainConfig(epochs=4, batch_size=16, learning_rate=4e-3, examples=1024),
}
CALIBRATION = {"digits": 1024, "text": 128}  # examples: of text, windows of 128 characters
HELD_OUT = {"digits": 1024, "text": 256}
BATCH = {"digits": 256, "text": 16}
Pruned = Callable[[nn.Module, float], object]


def _loss(model: nn.Module, held_out: Examples, batch: int) -> float:
    """Cross-entropy in nats, per example or character."""
    with evaluating(model):
        total = sum(
            float(F.cross_entropy(model(x).flatten(0, -2), y.flatten(), reduction="sum"))
            for x, y in zip(held_out.inputs.split(batch), held_out.targets.split(batch), strict=True)
        )
    return total / held_out.targets.numel()


def _l1(layers: Callable[[nn.Module, str], bool]) -> Pruned:
    def run(model: nn.Module, ratio: float) -> None:
        for layer in layers_of(model, layers).values():
            torch_prune.l1_unstructured(layer, "weight", amount=ratio)

    return run


def _methods(
    task: tasks.Task, forward_loop: Callable[[nn.Module], object]
) -> tuple[Pruned, dict[str, tuple[float, Pruned]]]:
    """Ours, and the others by name, each with the factor that ours must stay below."""

    def prunable(layer: nn.Module, fqn: str) -> bool:
        return isinstance(layer, nn.Linear) and task.prunable(fqn)

    def wanda(model: nn.Module, ratio: float) -> None:
        MaskPruner(model, importance="wanda", pruning_ratio=ratio, filter_fn=prunable, forward_loop=forward_loop).step()

    def ours(model: nn.Module, ratio: float, **options: str) -> None:
        reconstruct_(model, forward_loop, pruning_ratio=ratio, filter_fn=prunable, **options)

    return ours, {
        "magnitude (torch.nn.utils.prune)": (0.5, _l1(prunable)),
        "Wanda (our implementation)": (1.0, wanda),
        "SparseGPT (our implementation)": (1.0, lambda m, ratio: ours(m, ratio, method="sparsegpt", match="own")),
    }


def _of_task(name: str) -> Iterator[Row]:
    task = tasks.get(name)
    data = task.load(0)
    torch.manual_seed(0)
    model, recipe = task.build(SETTINGS[name]), task.recipe
    fit(model, data.train, CrossEntropy(0.0), TRAINING[name], seed=0, augment=Augment(recipe.augment, 0))
    parts = (data.validation, data.test)
    held_out = Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
    held_out = Examples(held_out.inputs[: HELD_OUT[name]], held_out.targets[: HELD_OUT[name]])
    seen = data.train.inputs[torch.randperm(len(data.train))[: CALIBRATION[name]]]

    def forward_loop(model: nn.Module) -> None:
        for batch in seen.split(BATCH[name]):
            model(batch)

    def rise(method: Pruned, ratio: float) -> float:
        pruned = copy.deepcopy(model)
        method(pruned, ratio)
        return _loss(pruned, held_out, BATCH[name]) - before

    before = _loss(model, held_out, BATCH[name])
    ours, others = _methods(task, forward_loop)
    for ratio in RATIOS:
        figure = rise(ours, ratio)
        for peer, (factor, method) in others.items():
            case = f"{name} ({before:.3f} nats), {ratio:.0%} of each layer zero, no retraining"
            yield Row(case, "loss increase, nats", figure, peer, rise(method, ratio), factor=factor)


def rows() -> Iterator[Row]:
    for name in SETTINGS:
        yield from _of_task(name)
