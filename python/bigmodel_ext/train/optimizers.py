"""Optimizers by name: torch's own, in their fused form where that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigmodel_ext.train.settings import TrainConfig


def _sgd(groups: Any, config: TrainConfig, fused: bool) -> Optimizer:
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=fused
    )


def _adam(groups: Any, config: TrainConfig, fused: bool) -> Optimizer:
    return torch.optim.Adam(groups, lr=config.learning_rate, fused=fused)


def _adamw(groups: Any, config: TrainConfig, fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


_MAKERS: dict[str, Callable[[Any, TrainConfig, bool], Optimizer]] = {
    "sgd": _sgd,  # with momentum, Nesterov's if asked for (Sutskever et al. 2013)
    "adam": _adam,  # Kingma & Ba 2015
    "adamw": _adamw,  # Loshchilov & Hutter 2019
}


def make(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer that config names, over the model's parameters that are trained. Matrices decay; biases and norms
    do not.

    Raises:
        ValueError: nothing in the model is trained.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that requires a gradient: there is nothing to train")
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return _MAKERS[config.optimizer](groups, config, fusable(trained))


def fusable(parameters: list[nn.Parameter]) -> bool:
    """Whether torch has one kernel for the whole step: plain real tensors on a processor or a GPU."""
    return all(
        type(p) is nn.Parameter and p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
    )
