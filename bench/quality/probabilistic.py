"""Probabilistic quantization against rounding to nearest, every linear layer an int8 layer with dynamic activations.

"coded nearest" gets our entropy coder and at least the bytes that ours take in a file, its step found by bisection: a
share of each row's largest weight ("a step a row"), of all the layer's weights' standard deviation ("a step a
layer", which a coder likes better), or the same in all layers ("a step a model", which gives large weights more bits).
"fixed width" has b bits for each weight, a grid for each row, and no coder.
Figures are means over trained models, one draw for each, on data that neither training nor calibration saw. Where ours
answer as the float model does, a peer can still be better by luck: the float model's figures are in each row.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bigmodel_ext import save_model
from bigmodel_ext.compress.calibrate import layers_of
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config, quantize_
from bigmodel_ext.formats import coded
from bigmodel_ext.nn import Int8Linear
from bigmodel_ext.train.loop import outputs
from torch import Tensor, nn
from torch.nn import functional as F

from bench.quality._models import digits_vit, text_transformer
from bench.quality._row import Row

BITS = (3, 4, 5, 6)
SEEDS = {"digits": (0, 1), "text": (0,)}  # of models, and of our draws
CALIBRATION = {"digits": 256, "text": 64}  # examples: of text, windows of 128 characters
HELD_OUT = {"digits": 719, "text": 1024}  # of digits validation data too, of text the test data
FIGURES = ("KL from the float model, nats", "loss, nats", "answers as the float model's", "accuracy")
_MOST = 127
_SLACK = 0.002  # of the bits: a peer may have so many more than ours, and none less

Grid = Callable[[Tensor, float], Tensor]  # (weight, size) -> step of each row
Coded = dict[str, tuple[Tensor, Tensor]]  # layer -> (q, step)
GRIDS: dict[str, Grid] = {
    "a step a row": lambda weight, size: weight.abs().amax(1) * size,
    "a step a layer": lambda weight, size: (weight.std() * size).expand(len(weight)),
    "a step a model": lambda weight, size: weight.new_full((len(weight),), size),
}


def _stored(tensor: Tensor) -> int:
    raw = tensor.numel() * tensor.element_size()
    return min(raw, coded.encode(tensor).numel()) if coded.can(tensor) else raw


class Case:
    """A trained model and the data it is judged on."""

    def __init__(self, name: str, seed: int) -> None:
        self.seed = seed
        self.model, data = digits_vit(seed) if name == "digits" else text_transformer(seed)
        some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: CALIBRATION[name]]
        self.calibration = data.train.inputs[some]
        self.inputs = torch.cat([data.validation.inputs, data.test.inputs])[-HELD_OUT[name] :]
        self.targets = torch.cat([data.validation.targets, data.test.targets])[-HELD_OUT[name] :].flatten()
        self.weights = {fqn: m.weight.detach() for fqn, m in layers_of(self.model, kinds=(nn.Linear,)).items()}  # type: ignore[union-attr]
        self.numel = sum(weight.numel() for weight in self.weights.values())
        self.answers = self._answers(self.model)

    def _answers(self, model: nn.Module) -> Tensor:
        return outputs(model, self.inputs, 64).flatten(0, -2).log_softmax(-1)

    def figures(self, model: nn.Module) -> Tensor:
        """FIGURES of a model."""
        found = self._answers(model)
        same, hits = (
            (found.argmax(-1) == wanted).double().mean() for wanted in (self.answers.argmax(-1), self.targets)
        )
        divergence = F.kl_div(found, self.answers, log_target=True, reduction="batchmean")
        return torch.stack([divergence.double(), F.nll_loss(found, self.targets).double(), same, hits])

    def file_bits(self, model: nn.Module) -> float:
        """Bits that the layers' weights and scales take in a file, a weight."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model")
            save_model(model, path)
            data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        names = {f"{fqn}.{name}" for fqn in self.weights for name in ("weight_q", "weight_scale")}
        spans = (entry["data_offsets"] for key, entry in header.items() if key.removesuffix(":rans") in names)
        return 8 * sum(end - start for start, end in spans) / self.numel

    def ours(self, bits: int) -> tuple[nn.Module, float]:
        """(a model, the entropy it reports, bits a weight)."""
        model = copy.deepcopy(self.model)
        report = quantize_(
            model,
            ProbabilisticInt8Config(bits, seed=self.seed, rows=()),
            lambda m: m(self.calibration),
            lambda m, fqn: fqn in self.weights,
        )
        entropy = sum(row.figures["entropy"] * self.weights[row.fqn].numel() for row in report.layers)
        return model, entropy / self.numel

    def rounded(self, grid: Grid, size: float, most: int = _MOST) -> Coded:
        made = {}
        for fqn, weight in self.weights.items():
            step = torch.maximum(grid(weight, size), weight.abs().amax(1) / most).clamp_min(1e-12)
            made[fqn] = (weight / step[:, None]).round().clamp(-most, most).to(torch.int8), step
        return made

    def nearest(self, grid: Grid, least: float) -> Coded:
        """The coarsest grid, nearly, that takes at least so many bits a weight."""
        best, x, low, high = None, -least, -math.inf, math.inf
        for _ in range(24):
            made = self.rounded(grid, 2.0**x)
            excess = 8 * sum(_stored(t) for pair in made.values() for t in pair) / self.numel - least
            if excess >= 0:
                best, low = made, x
                if excess <= _SLACK * least:
                    break
            else:
                high = x
            x += excess - _SLACK / 2 * least  # twice the step saves about a bit a weight
            if not low < x < high:
                x = (low + high) / 2
        assert best is not None
        return best

    def exchanged(self, made: Coded) -> nn.Module:
        model = copy.deepcopy(self.model)
        for fqn, (q, step) in made.items():
            layer = Int8Linear.from_float(model.get_submodule(fqn))  # type: ignore[arg-type]
            layer.load_state_dict({**layer.state_dict(), "weight_q": q, "weight_scale": step})
            layer.coding = "rans"
            parent, _, name = fqn.rpartition(".")
            model.get_submodule(parent).register_module(name, layer)
        return model


@dataclass
class Mean:
    """Of one method: FIGURES, the bits a weight that it takes, the entropy it reports."""

    figures: Tensor = field(default_factory=lambda: torch.zeros(len(FIGURES), dtype=torch.float64))
    bits: float = 0.0
    entropy: float = 0.0

    def add(self, share: float, figures: Tensor, bits: float, entropy: float = 0.0) -> None:
        self.figures += share * figures
        self.bits += share * bits
        self.entropy += share * entropy


def _measured(cases: list[Case], bits: int) -> tuple[Mean, dict[str, Mean]]:
    """Ours and, by name, the peers."""
    ours, fixed, peers = Mean(), Mean(), {name: Mean() for name in GRIDS}
    share, top = 1 / len(cases), 2 ** (bits - 1) - 1
    for case in cases:
        model, entropy = case.ours(bits)
        most = case.file_bits(model)
        ours.add(share, case.figures(model), most, entropy)
        for name, grid in GRIDS.items():
            model = case.exchanged(case.nearest(grid, most))
            took = case.file_bits(model)
            assert took >= most, f"{name} takes {took} bits, ours {most}"
            peers[name].add(share, case.figures(model), took)
        scales = 32 * sum(len(weight) for weight in case.weights.values()) / case.numel
        model = case.exchanged(case.rounded(GRIDS["a step a row"], 1 / top, top))
        fixed.add(share, case.figures(model), bits + scales)
    named = {f"coded nearest, {name} ({mean.bits:.3f})": mean for name, mean in peers.items()}
    return ours, {**named, f"fixed width ({fixed.bits:.3f})": fixed}


def rows() -> Iterator[Row]:
    for name, title in (("digits", "digits ViT"), ("text", "text transformer")):
        cases = [Case(name, seed) for seed in SEEDS[name]]
        _, loss, _, accuracy = (sum(case.figures(case.model) for case in cases) / len(cases)).tolist()
        for bits in BITS:
            ours, peers = _measured(cases, bits)
            case = f"{title} (float: {loss:.4g} nats, {accuracy:.4g}), {bits} bits/weight"
            yield Row(case, "bits/weight in the file", ours.bits, "the entropy it reports", ours.entropy, factor=1.02)
            for peer, theirs in peers.items():
                for metric, own, other in zip(FIGURES, ours.figures.tolist(), theirs.figures.tolist(), strict=True):
                    yield Row(case, metric, own, peer, other, metric in FIGURES[:2])
