"""Trained models that several sections look at, each trained once a process."""

from __future__ import annotations

from functools import cache

import torch
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, fit
from bigmodel_ext.train.tasks import Data, get
from torch import nn

VIT = {"width": 192, "depth": 3, "heads": 6, "mlp": 768}
VIT_TRAINING = TrainConfig(epochs=15, batch_size=32, learning_rate=1e-3)
TEXT_TRAINING = TrainConfig(epochs=4, batch_size=16, learning_rate=3e-3, examples=2048)


@cache
def digits_vit(seed: int = 0) -> tuple[nn.Module, Data]:
    """A vision transformer trained on digits; the data are split by the seed. Copy the model before changing it."""
    return _trained("digits", VIT, VIT_TRAINING, seed)


@cache
def text_transformer(seed: int = 0) -> tuple[nn.Module, Data]:
    """A transformer trained on the text task, as its teacher but half as long. Copy it before changing it."""
    return _trained("text", dict(get("text").recipe.teacher), TEXT_TRAINING, seed)


def _trained(name: str, settings: dict[str, int], config: TrainConfig, seed: int) -> tuple[nn.Module, Data]:
    task = get(name)
    data = task.load(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.build(settings)
        augment = Augment(task.recipe.augment, seed) if task.recipe.augment else None
        fit(model, data.train, CrossEntropy(task.recipe.label_smoothing), config, seed=seed, augment=augment)
    return model, data
