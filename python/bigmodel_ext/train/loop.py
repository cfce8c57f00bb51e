"""A seeded training loop for any module and loss: AdamW, Adam or SGD with warm-up and a cosine and clipped gradients,
in one process or many, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.train._run import ALONE as ALONE
from bigmodel_ext.train._run import Across as Across
from bigmodel_ext.train._run import Run, device_of
from bigmodel_ext.train.resume import Resume as Resume
from bigmodel_ext.train.settings import Batches as Batches
from bigmodel_ext.train.settings import Examples as Examples
from bigmodel_ext.train.settings import Loss as Loss
from bigmodel_ext.train.settings import NonFiniteLossError as NonFiniteLossError
from bigmodel_ext.train.settings import OnEpoch as OnEpoch
from bigmodel_ext.train.settings import OnStep as OnStep
from bigmodel_ext.train.settings import TrainConfig as TrainConfig
from bigmodel_ext.train.settings import cosine as cosine


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy against targets smoothed towards uniform (Szegedy et al. 2016): (1 - s) onehot + s / classes, its
    mean over the batch and, where the model gives logits [B, T, classes], over the positions."""

    label_smoothing: float = 0.1

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=self.label_smoothing)


def fit(
    model: nn.Module,
    examples: Examples | Batches,
    loss: Loss,
    config: TrainConfig,
    *,
    seed: int,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    stage: str = "train",
    resume: Resume | None = None,
    across: Across = ALONE,
) -> list[float]:
    """Train model in place; leaves it in eval mode. Batches are moved to the device that the model is on.

    Args:
        examples: what to train on. Of Examples, each epoch sees all in a new order, a last incomplete batch left out;
            batches come in the order, number and size that their iterator gives them.
        loss: loss(model, inputs, targets) -> scalar. Parameters of its own, if it is a module, are trained too.
        seed: of the order of examples.
        augment: changes a batch of inputs.
        on_step: called with the number of steps done after each; here a pruner keeps its masks.
        on_epoch: called with (epochs done, mean loss).
        stage: a name for error messages.
        resume: where to keep the run's state and go on from. The states of torch's generators belong to it, and those
            of augment, on_step and loss where they are Stateful; an iterator that draws from another generator does not
            resume bit for bit.
        across: the processes to train in; see :mod:`bigmodel_ext.train.distributed`. Of Examples, a batch is
            batch_size from each; batches are each process's own.

    Returns:
        the mean loss of each epoch.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; the model keeps the weights of the step before.
        ValueError: nothing in the model is trained, there are fewer examples than processes need for one batch, or the
            file to resume from is damaged or of another run (the model is as it was).
    """
    run = Run(model, examples, loss, config, seed, augment, on_step, stage, resume, across)
    while run.epoch < config.epochs:
        run.train_epoch()
        if on_epoch is not None:
            on_epoch(run.epoch, run.means[-1])
    run.finish()
    return run.means


def total_steps(examples: Examples | Batches, config: TrainConfig, processes: int = 1) -> int:
    """How many steps `fit` takes."""
    return config.steps(len(examples), processes) if isinstance(examples, Examples) else config.epochs * len(examples)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards each of its modules is in the mode it was in (a frozen
    BatchNorm stays so). Not in inference mode: what a model keeps of a call, it must be able to train with."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if any(training for _, training in modes):
            model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def outputs(model: nn.Module, inputs: Tensor, batch: int = 256) -> Tensor:
    """The model's outputs over all inputs, computed in batches."""
    with evaluating(model):
        return torch.cat([model(_to_model(inputs[i : i + batch], model)) for i in range(0, len(inputs), batch)])


def _to_model(inputs: Tensor, model: nn.Module) -> Tensor:
    return inputs.to(device_of(model, inputs.device))


def accuracy(model: nn.Module, examples: Examples) -> float:
    """The share of targets whose output is the largest, over examples and positions."""
    hits = outputs(model, examples.inputs).argmax(-1).to(examples.targets.device) == examples.targets
    return float(hits.double().mean())
