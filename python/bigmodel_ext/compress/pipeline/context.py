"""What the steps of one `compress` call share: budget, data, and attempts that survive a kill."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.checkpoint import load_model, save_model
from bigmodel_ext.compress.controller.budget import Budget
from bigmodel_ext.compress.controller.journal import Journal
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import Batches, Examples, Loss, OnStep, TrainConfig, fit
from bigmodel_ext.train.progress import Progress

Make = Callable[[], nn.Module]
_ATTEMPT = re.compile(r"attempt-\d+-[a-z]+(-\d+)+\.safetensors")


@dataclass(frozen=True)
class Attempt:
    """A setting that a step tried."""

    setting: str
    score: float
    kept: bool


@dataclass(frozen=True)
class Stage:
    """A step's result. `fresh` builds the model as its own code does, for load_model to bring to this form."""

    name: str
    model: nn.Module
    fresh: Make
    setting: str
    score: float
    attempts: tuple[Attempt, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # JSON: what the step wants in the report

    @property
    def rolled_back(self) -> bool:
        return any(not attempt.kept for attempt in self.attempts)


@dataclass(frozen=True)
class Tried:
    """An attempt's score, and how to get at its model."""

    score: float
    model: Make


@dataclass
class Context:
    budget: Budget
    data: Batches | Examples
    loss: Loss
    augment: Mapping[str, float]
    cost: str  # "latency" or "bytes"
    target: float | None  # seconds or bytes
    calibration: Sequence[Tensor]  # input batches
    example: Tensor  # the batch that latencies are measured with
    seed: int
    journal: Journal
    folder: Path | None
    progress: Progress
    baseline: float = 0.0
    share: float = 1.0  # of the budget that the step may use up
    _step: str = ""
    _numbers: dict[str, int] = field(default_factory=dict)  # of the step's attempts: what is tried again is the same
    _number: int = 0

    def begin(self, step: str) -> None:
        """Attempts from now on belong to this step, which may use up the whole budget."""
        self._step, self._numbers, self.share = step, {}, 1.0

    def within(self, score: float) -> bool:
        return self.budget.within(score, self.baseline, self.share)

    def forward_loop(self, model: nn.Module) -> None:
        for inputs in self.calibration:
            model(inputs)

    def recall(self, name: str, compute: Callable[[], Any]) -> Any:
        return self.journal.recall(f"{self._step}: {name}", compute)

    def attempt(self, setting: str, make: Make, fresh: Make, key: str = "") -> Tried:
        """Make a model and score it, or recall what an earlier run found; one that keeps the budget is saved, so that
        it need not be made again. key: tells it from others, where the setting does not."""
        key = key or setting
        number = self._numbers.setdefault(key, len(self._numbers) + 1)
        file = None if self.folder is None else self.folder / f"attempt-{self._step}-{number}.safetensors"
        made: list[nn.Module] = []

        def score() -> float:
            made.append(self._seeded(number, make).eval())
            value = self.budget.score(made[0])
            if file is not None and self.within(value):
                save_model(made[0], file)
            return value

        value = float(self.recall(f"{number}, {key}", score))

        def model() -> nn.Module:
            if made:
                return made[0]
            if file is not None and file.exists():
                return load_model(fresh(), file).eval()
            return self._seeded(number, make).eval()

        self.progress.note(f"  {setting}: {value:.4f}, {self._verdict(value)}")
        return Tried(value, model)

    def _verdict(self, score: float) -> str:
        floor = self.baseline - self.share * (self.baseline - self.budget.floor(self.baseline))
        return "keeps the budget" if self.within(score) else f"below the budget ({floor:.4f}), rolled back"

    def _seeded(self, number: int, make: Make) -> nn.Module:
        """Dropout and initial weights from a seed of their own, whatever was or was not computed before."""
        self._number = number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.seed + number)
            return make()

    def train(
        self, name: str, model: nn.Module, config: TrainConfig, on_step: OnStep | None = None, loss: Loss | None = None
    ) -> nn.Module:
        """Train the model in place."""
        seed = 10 * self.seed + self._number
        augment = Augment(self.augment, seed) if self.augment else None  # one for each training: they may be resumed
        with self.progress.stage(name, config.epochs) as advance:
            fit(
                model, self.data, loss or self.loss, config,
                seed=seed, augment=augment, on_step=on_step, on_epoch=advance, stage=name,
            )  # fmt: skip
        return model

    def first_within(self, name: str, before: Stage, tries: Sequence[tuple[str, Make, Make]], unchanged: str) -> Stage:
        """The first of (setting, make, fresh) that keeps the budget; else `before` under this step's name."""
        attempts = []
        for setting, make, fresh in tries:
            tried = self.attempt(setting, make, fresh)
            attempts.append(Attempt(setting, tried.score, self.within(tried.score)))
            if attempts[-1].kept:
                return Stage(name, tried.model(), fresh, setting, tried.score, tuple(attempts))
        self.progress.note(f"  no setting keeps the budget: {unchanged}")
        return Stage(name, before.model, before.fresh, unchanged, before.score, tuple(attempts))

    def clean(self) -> None:
        """Remove the attempts' models, and nothing else that the folder may hold: the run is complete."""
        if self.folder is not None:
            for file in self.folder.glob("*.safetensors"):
                if _ATTEMPT.fullmatch(file.name):
                    with contextlib.suppress(FileNotFoundError):
                        file.unlink()
