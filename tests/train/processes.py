"""What test_distributed.py trains, in one process itself and in two by running this file under torchrun."""

import contextlib
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from bigmodel_ext import Int8BlockSparseWeightConfig, UnstructuredSparseWeightConfig, sparsify_
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.distributed import Processes
from bigmodel_ext.train.loop import ALONE, CrossEntropy, Examples, NonFiniteLossError, Resume, TrainConfig, fit
from bigmodel_ext.train.transformer import Transformer, TransformerConfig
from safetensors.torch import save_file
from torch import nn

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2)  # of each of two processes; one takes twice that
STEPS = 12


def examples():
    generator = torch.Generator().manual_seed(1)
    return Examples(torch.randn(100, 24, generator=generator), torch.randint(4, (100,), generator=generator))


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))


def sparse(config):
    model = dense()
    MaskPruner(model, granularity="1x4", pruning_ratio=0.75).step()
    sparsify_(model, config, filter_fn=lambda module, fqn: fqn in ("0", "2"))
    return model


def tokens():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(12, (100, 9), generator=generator)
    return Examples(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def transformer():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(16, 2, 2, 1, 24, vocabulary=12, context=8))


class OwnParameters(nn.Module):
    """A loss that learns something itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, model, inputs, targets):
        return nn.functional.cross_entropy(model(inputs) * self.scale, targets)


# name -> (model, examples, changes to CONFIG, sharded)
CASES = {
    "adamw": (dense, examples, {}, False),
    "sgd": (dense, examples, {"optimizer": "sgd", "learning_rate": 0.1, "nesterov": True}, False),
    "sparse": (lambda: sparse(UnstructuredSparseWeightConfig(rows=())), examples, {}, False),
    "int8 sparse": (lambda: sparse(Int8BlockSparseWeightConfig(rows=())), examples, {}, False),
    "fsdp": (transformer, tokens, {}, True),
    "fsdp sparse": (lambda: sparse(UnstructuredSparseWeightConfig(rows=())), examples, {}, True),
}


def train(name, across, batch_size):
    make, data, changes, _ = CASES[name]
    model = make()
    config = replace(CONFIG, **changes, batch_size=batch_size)
    means = fit(model, data(), CrossEntropy(0.0), config, seed=0, across=across)
    return {**model.state_dict(), "means": torch.tensor(means)}


def pruned(across, batch_size):
    model = dense()
    pruner = GradualPruner(MaskPruner(model, granularity="1x4", pruning_ratio=0.5), STEPS, every=1)
    fit(
        model,
        examples(),
        CrossEntropy(0.0),
        replace(CONFIG, batch_size=batch_size),
        seed=0,
        on_step=pruner,
        across=across,
    )
    return {**model.state_dict(), **{f"mask {fqn}": mask for fqn, mask in pruner.masks.items()}}


def own_parameters(across, batch_size):
    model, loss = dense(), OwnParameters()
    fit(model, examples(), loss, replace(CONFIG, batch_size=batch_size), seed=0, across=across)
    return {**model.state_dict(), "scale": loss.scale.detach()}


class Stop(Exception):
    pass


def stop_at(last, step):
    if step == last:
        raise Stop


def resumed(across, batch_size, folder):
    """(as trained in one go, as stopped and resumed), with dropout and noise of each process's own."""
    results = []
    for stops in ((None,), (8, None)):
        for stop in stops:
            model = nn.Sequential(nn.Dropout(0.2), dense())
            torch.manual_seed(across.rank)
            with contextlib.suppress(Stop):
                fit(
                    model, examples(), CrossEntropy(0.0), replace(CONFIG, batch_size=batch_size), seed=0,
                    augment=Noise(across.rank), on_step=partial(stop_at, stop),
                    resume=Resume(folder / f"{len(stops)}.safetensors", every=3), across=across,
                )  # fmt: skip
        results.append(model.state_dict())
    return results


class Noise:
    """An augmentation of rows, whose generator is an Augment's."""

    def __init__(self, seed):
        self._augment = Augment({"noise": 0.1}, seed)
        self.state, self.restore = self._augment.state, self._augment.restore

    def __call__(self, rows):
        return self._augment(rows[:, None, None, :] * 0.1 + 0.5).flatten(1)


def too_few(across):
    few = Examples(torch.randn(10, 24), torch.zeros(10, dtype=torch.long))
    try:
        fit(dense(), few, CrossEntropy(0.0), CONFIG, seed=0, across=across)
    except ValueError as error:
        return str(error)
    return "trained"


def not_finite(across):
    """Only one process's loss is NaN: both stop, and neither waits for the other."""

    def loss(model, inputs, targets):
        return CrossEntropy(0.0)(model, inputs, targets) * (float("nan") if across.rank == 1 else 1.0)

    try:
        fit(dense(), examples(), loss, CONFIG, seed=0, across=across)
    except NonFiniteLossError as error:
        return str(error)
    return "trained"


def main(folder):
    torch.set_num_threads(1)
    across = {kind: Processes(sharded=kind, cpu=True) for kind in (False, True)}
    rank = across[False].rank
    found = {name: train(name, across[sharded], 8) for name, (_, _, _, sharded) in CASES.items()}
    found["pruned"] = pruned(across[False], 8)
    found["own"] = own_parameters(across[False], 8)
    found["straight"], found["resumed"] = resumed(across[False], 8, folder)
    flat = {f"{case}/{name}": t.detach().contiguous() for case, named in found.items() for name, t in named.items()}
    save_file(flat, folder / f"rank{rank}.safetensors")
    told = [too_few(across[False]), not_finite(across[False]), too_few(across[True])]
    try:
        fit(dense(), examples(), CrossEntropy(0.0), CONFIG, seed=0, on_step=lambda step: None, across=across[True])
    except ValueError as error:
        told.append(str(error))
    (folder / f"rank{rank}.txt").write_text("\n".join(told))
    across[False].close()


def alone(name):
    """The same in this process, with twice the batch."""
    if name == "pruned":
        return pruned(ALONE, 16)
    return own_parameters(ALONE, 16) if name == "own" else train(name, ALONE, 16)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
