"""Structured pruning to half and a quarter of the multiply-accumulates, against torch-pruning's own importances.

The same trained network (digits, residual with grouped convolutions) is pruned by each and fine-tuned alike: same data,
order, epochs and learning rate. Of each peer importance the better of ranking within layers and over all layers counts,
each at the least ratio that brings the multiply-accumulates, as torch-pruning counts them, down to the target. Figures
are test accuracies, means over the seeds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch_pruning as tp
from bigmodel_ext.compress.prune import StructuredPruner
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits
from bigmodel_ext.train.tasks._task import Data
from torch import nn
from torch.nn import functional as F

from bench.quality._row import Row

SEEDS = 3
TARGETS = (0.5, 0.25)
TRAIN = TrainConfig(epochs=12, batch_size=32, learning_rate=3e-3)
TUNE = TrainConfig(epochs=3, batch_size=32, learning_rate=1e-3)
PEERS: dict[str, Callable[[], Any]] = {
    "GroupMagnitude": tp.importance.GroupMagnitudeImportance,
    "GroupTaylor": tp.importance.GroupTaylorImportance,
    "GroupHessian": tp.importance.GroupHessianImportance,
    "LAMP": tp.importance.LAMPImportance,
    "BNScale": tp.importance.BNScaleImportance,
}


def _macs(model: nn.Module, example: torch.Tensor) -> float:
    return float(tp.utils.count_ops_and_params(model, example)[0])


def _gradients(model: nn.Module, importance: Any, data: Data) -> None:
    """What an importance needs besides weights: one gradient, or one for each example."""
    inputs, targets = data.train.inputs[:128], data.train.targets[:128]
    model.eval().zero_grad()
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    if isinstance(importance, tp.importance.GroupTaylorImportance):
        losses.mean().backward()
    if isinstance(importance, tp.importance.GroupHessianImportance):
        for loss in losses[:32]:
            model.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(model)


def _theirs(dense: nn.Module, make: Callable[[], Any], over_all: bool, target: float, data: Data) -> nn.Module:
    example = data.train.inputs[:1]
    limit = target * _macs(dense, example)

    def at(ratio: float) -> nn.Module:
        model, importance = copy.deepcopy(dense), make()
        _gradients(model, importance, data)
        arguments = {"pruning_ratio": ratio, "global_pruning": over_all, "ignored_layers": [model.head]}
        tp.pruner.BasePruner(model, example, importance=importance, **arguments).step()
        model.zero_grad()
        return model

    low, high = 0.0, 0.95
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if _macs(at(middle), example) <= limit else (middle, high)
    return at(high)


def _ours(dense: nn.Module, target: float, data: Data) -> nn.Module:
    """torch-pruning counts more than products, so the target is lowered until it too finds it met."""
    example = data.train.inputs[:1]
    limit, share = target * _macs(dense, example), target
    while True:
        model = copy.deepcopy(dense)
        pruner = StructuredPruner(
            model,
            example,
            "reconstruction",
            target_macs=share,
            forward_loop=lambda m: m(data.train.inputs[:512]),
        )
        pruner.step()
        if _macs(model, example) <= limit:
            return model
        share *= 0.99


def _tuned(model: nn.Module, data: Data, seed: int) -> float:
    fit(model, data.train, CrossEntropy(), TUNE, seed=seed)
    return accuracy(model, data.test)


def rows() -> Iterator[Row]:
    warnings.filterwarnings("ignore", module="torch_pruning")
    with warnings.catch_warnings():
        ours: dict[float, list[float]] = {target: [] for target in TARGETS}
        theirs: dict[tuple[str, float, bool], list[float]] = {}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            data, dense = digits.load(seed), CNN(CNNConfig(width=16, depth=1))
            fit(dense, data.train, CrossEntropy(), TRAIN, seed=seed)
            for target in TARGETS:
                ours[target].append(_tuned(_ours(dense, target, data), data, seed))
                for name, make in PEERS.items():
                    for over_all in (False, True):
                        model = _theirs(dense, make, over_all, target, data)
                        theirs.setdefault((name, target, over_all), []).append(_tuned(model, data, seed))
    for target in TARGETS:
        case = f"digits CNN, {1 / target:g}x fewer MACs, {TUNE.epochs} epochs after, {SEEDS} seeds"
        mean = sum(ours[target]) / SEEDS
        for name in PEERS:
            best = max(sum(theirs[name, target, over_all]) / SEEDS for over_all in (False, True))
            yield Row(case, "test accuracy", mean, f"torch-pruning {name}", best, lower_is_better=False)
