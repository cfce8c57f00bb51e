"""A character-level language model over the source of Python's own standard library, which every Python ships, so
nothing is downloaded. Validation and test are files that training never sees.

A character is a byte below 128; all others are one unknown, 0. Which files are held out follows from their names and
the seed, so two versions of Python mostly agree on it; their sources differ, and so do results, slightly.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.train.loop import Examples, TrainConfig, evaluating
from bigmodel_ext.train.tasks._task import Data, Metric, Recipe, Task
from bigmodel_ext.train.transformer import Transformer, TransformerConfig

VOCABULARY = 128
UNKNOWN = 0
CONTEXT = 128
TEST_SHARE = 0.1  # of the files
VALIDATION_SHARE = 0.1
LARGEST = {"validation": 512, "test": 1024}  # windows that are looked at; of those to train on, all


def sources(folder: Path | None = None) -> list[Path]:
    """The library's modules (not its packages), by name; generated build settings left out.

    Raises:
        ValueError: the folder has fewer than three of them (a Python whose library is zipped or compiled only).
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    found = sorted(
        path
        for path in folder.glob("*.py")
        if not path.name.startswith("_sysconfigdata") and path.stat().st_size > CONTEXT
    )
    if len(found) < 3:
        raise ValueError(f"the text task needs the standard library's source: {folder} has {len(found)} modules of it")
    return found


def split(names: Sequence[str], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Indices for training, validation and test: disjoint, together everything, none of them empty; each name's place
    depends on the seed and itself."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
    test = max(1, round(TEST_SHARE * len(names)))
    validation = max(1, round(VALIDATION_SHARE * len(names)))
    return order[test + validation :], order[test : test + validation], order[:test]


def encode(text: bytes) -> Tensor:
    """uint8 [len(text)]: each byte, or UNKNOWN where it is 128 or more."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    return ids.where(ids < VOCABULARY, UNKNOWN)


def windows(texts: Sequence[bytes]) -> Tensor:
    """int64 [n, CONTEXT + 1]: each text cut into pieces that overlap by one character; ends that fill none are lost."""
    cut = [encode(text).unfold(0, CONTEXT + 1, CONTEXT) for text in texts if len(text) > CONTEXT]
    return torch.cat(cut).long()


def load(seed: int) -> Data:
    """inputs and targets int64 [n, CONTEXT]; a target is the character after its input."""
    paths = sources()
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, members in zip(("train", "validation", "test"), split([p.name for p in paths], seed), strict=True):
        found = windows([paths[i].read_bytes().replace(b"\r\n", b"\n") for i in sorted(members)])
        if name in LARGEST:  # spread over the files
            found = found[torch.randperm(len(found), generator=generator)[: LARGEST[name]]]
        parts[name] = Examples(found[:, :-1].contiguous(), found[:, 1:].contiguous())
    return Data(**parts)


def bits_per_character(model: nn.Module, examples: Examples, batch: int = 64) -> float:
    """``-mean log2 p(target)``, over all positions; a model that knows nothing has 7."""
    total = 0.0
    with evaluating(model):
        for i in range(0, len(examples), batch):
            logits = model(examples.inputs[i : i + batch]).flatten(0, -2).float()
            total += float(F.cross_entropy(logits, examples.targets[i : i + batch].flatten(), reduction="sum"))
    return total / examples.targets.numel() / math.log(2)


BITS = Metric(
    "bits per character",
    lambda model, examples: -bits_per_character(model, examples),
    lambda score: f"{-score:.3f}",
)


def build(settings: Mapping[str, Any]) -> nn.Module:
    return Transformer(TransformerConfig(**settings))


def _prunable(fqn: str) -> bool:
    """All but the last layer."""
    return fqn != "head"


def task() -> Task:
    recipe = Recipe(
        teacher={"width": 192, "depth": 2, "heads": 6, "kv_heads": 2, "mlp": 512},
        students=({"width": 128, "depth": 2, "heads": 4, "kv_heads": 2, "mlp": 384},),
        sparsities=(0.7, 0.5, 0.3),
        augment={},
        train_teacher=TrainConfig(epochs=7, batch_size=16, learning_rate=3e-3, examples=2048),
        train_student=TrainConfig(epochs=4, batch_size=16, learning_rate=4e-3, examples=2048),
        prune_student=TrainConfig(epochs=3, batch_size=16, learning_rate=2e-3, examples=2048),
        label_smoothing=0.0,
        temperature=1.0,
        soft_weight=0.7,
        latency_batch=8,
    )
    quick = Recipe(
        teacher={"width": 64, "depth": 2, "heads": 2, "kv_heads": 1, "mlp": 128},
        students=({"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "mlp": 64},),
        sparsities=(0.5,),
        augment={},
        train_teacher=TrainConfig(epochs=4, batch_size=8, learning_rate=5e-3, examples=256),
        train_student=TrainConfig(epochs=4, batch_size=8, learning_rate=5e-3, examples=256),
        prune_student=TrainConfig(epochs=2, batch_size=8, learning_rate=3e-3, examples=256),
        label_smoothing=0.0,
        temperature=1.0,
        soft_weight=0.7,
        latency_batch=2,
    )
    return Task("text", load, build, recipe, quick, _prunable, BITS, drop_type="relative")
