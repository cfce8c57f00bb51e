"""scikit-learn's digits: 1797 scans of handwritten digits, 8x8 pixels (Alpaydin & Kaynak, UCI 1998), shipped inside
that package, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import Examples, TrainConfig
from bigmodel_ext.train.tasks._task import Data, Recipe, Task
from bigmodel_ext.train.vit import ViT, ViTConfig

MODELS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "vit": lambda settings: ViT(ViTConfig(**settings)),
    "cnn": lambda settings: CNN(CNNConfig(**settings)),
}
TEST_SHARE = 0.25
VALIDATION_SHARE = 0.15

AUGMENT = {
    "rotate": 12.0,
    "translate": 0.06,
    "scale": 0.1,
    "shear": 0.12,
    "perspective": 0.08,
    "brightness": 0.05,
    "contrast": 0.15,
    "noise": 0.03,
}


def split(targets: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices for training, validation and test: disjoint, together everything, classes in equal shares in each."""
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in range(int(targets.max()) + 1):
        members = (targets == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        test, validation = round(TEST_SHARE * len(members)), round(VALIDATION_SHARE * len(members))
        parts[0].append(members[test + validation :])
        parts[1].append(members[test : test + validation])
        parts[2].append(members[:test])
    train, validation_part, test_part = (torch.cat(part).sort().values for part in parts)
    return train, validation_part, test_part


def load(seed: int) -> Data:
    """The scans as float32 [n,1,8,8] in [0,1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    targets = torch.from_numpy(bunch.target).long()
    train, validation, test = (Examples(images[part], targets[part]) for part in split(targets, seed))
    return Data(train, validation, test)


def build(settings: Mapping[str, Any]) -> nn.Module:
    """A ViT, or with {"model": "cnn"} a CNN; the other settings are those of ViTConfig or CNNConfig.

    Raises:
        ValueError: there is no such model.
    """
    rest = dict(settings)
    kind = rest.pop("model", "vit")
    if kind not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {kind!r}")
    return MODELS[kind](rest)


def _prunable(fqn: str) -> bool:
    """All but the first and the last layer, which are small and hurt most."""
    return fqn not in ("embed", "head")


def task() -> Task:
    recipe = Recipe(
        teacher={"width": 256, "depth": 4, "heads": 8, "mlp": 1024},
        students=(
            {"width": 192, "depth": 2, "heads": 6, "mlp": 768},
            {"width": 256, "depth": 2, "heads": 8, "mlp": 1024},
        ),
        sparsities=(0.8, 0.7, 0.5),
        augment=AUGMENT,
        train_teacher=TrainConfig(epochs=40, batch_size=32, learning_rate=1e-3),
        train_student=TrainConfig(epochs=40, batch_size=32, learning_rate=1.5e-3),
        prune_student=TrainConfig(epochs=30, batch_size=32, learning_rate=8e-4),
    )
    quick = Recipe(
        teacher={"width": 64, "depth": 2, "heads": 2, "mlp": 256},
        students=({"width": 32, "depth": 1, "heads": 1, "mlp": 128},),
        sparsities=(0.5,),
        augment=AUGMENT,
        train_teacher=TrainConfig(epochs=3, batch_size=64, learning_rate=2e-3),
        train_student=TrainConfig(epochs=2, batch_size=64, learning_rate=2e-3),
        prune_student=TrainConfig(epochs=2, batch_size=64, learning_rate=1e-3),
        latency_batch=64,
    )
    return Task("digits", load, build, recipe, quick, _prunable)
