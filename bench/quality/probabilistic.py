"""Probabilistic quantization against rounding to nearest, every layer an int8 layer with dynamic activations.

Peers get our entropy coder and at least as many coded bytes as ours took: one step for the model, one step for each
layer (a share of its weights' standard deviation), one for each row (a share of its largest weight); the best of the
three counts, by each metric. "fixed width" has a grid of b bits for each row and no coder. Compared on the test data,
over all seeds: KL(float model || quantized), the share of examples (or characters) answered as the float model does,
loss and accuracy. Those two may be worse than the best peer's by one standard error of the difference, examples paired:
where nearly all answers are the float model's, the rest is luck. A seed is another trained model on digits; on text it
is other calibration data, chance and test data for the same model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
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
SEEDS = (0, 1, 2)
CALIBRATION = 256  # examples
KL, SAME = "KL from the float model, nats", "nearest, same coder and size"

Grid = Callable[[Tensor, float], Tensor]  # (weight, size) -> step of each row
GRIDS: dict[str, Grid] = {
    "one step": lambda weight, size: weight.new_full((len(weight),), size),
    "step by layer": lambda weight, size: (weight.std() * size).expand(len(weight)),
    "step by row": lambda weight, size: weight.abs().amax(1) * size,
}


@dataclass
class Figures:
    """Sums over seeds, of one method at one number of bits."""

    coded: float = 0.0  # bits
    entropy: float = 0.0
    losses: list[Tensor] = field(default_factory=list)  # of each example, or character
    hits: list[Tensor] = field(default_factory=list)
    agreement: float = 0.0
    divergence: float = 0.0


@dataclass
class Case:
    model: nn.Module
    calibration: Tensor
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        self.layers = layers_of(self.model, kinds=(nn.Linear,))
        self.weights = {fqn: layer.weight.detach() for fqn, layer in self.layers.items()}  # type: ignore[union-attr]
        self.answers = self.of(self.model)

    def of(self, model: nn.Module) -> Tensor:
        return outputs(model, self.inputs).flatten(0, -2).log_softmax(-1)

    def add(self, figures: Figures, model: nn.Module) -> None:
        found, targets = self.of(model), self.targets.flatten()
        figures.losses.append(F.nll_loss(found, targets, reduction="none").double())
        figures.hits.append((found.argmax(-1) == targets).double())
        figures.agreement += float((found.argmax(-1) == self.answers.argmax(-1)).double().mean()) / len(SEEDS)
        figures.divergence += float(F.kl_div(found, self.answers, log_target=True, reduction="batchmean")) / len(SEEDS)

    def on_grid(self, grid: Grid, size: float, most: int = 127) -> dict[str, tuple[Tensor, Tensor]]:
        made = {}
        for fqn, weight in self.weights.items():
            step = torch.maximum(grid(weight, size), weight.abs().amax(1) / 127) if most == 127 else grid(weight, size)
            step = step.clamp_min(1e-12)
            made[fqn] = (weight / step[:, None]).round().clamp(-most, most).to(torch.int8), step
        return made

    def exchanged(self, made: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
        model = copy.deepcopy(self.model)
        for fqn, (q, step) in made.items():
            layer = Int8Linear.from_float(model.get_submodule(fqn))  # type: ignore[arg-type]
            layer.load_state_dict({**layer.state_dict(), "weight_q": q, "weight_scale": step})
            parent, _, name = fqn.rpartition(".")
            model.get_submodule(parent).register_module(name, layer)
        return model

    def nearest(self, grid: Grid, least: float) -> dict[str, tuple[Tensor, Tensor]]:
        """The grid of a family that takes hardly more than so many coded bits, and no fewer."""
        numel = sum(weight.numel() for weight in self.weights.values())
        x = -4.0
        for _ in range(5):  # a doubled step saves about a bit a weight
            made = self.on_grid(grid, 2.0**x)
            x += max(-2.0, min(2.0, (_bits(made) / least - 1.0) * least / numel))
        while _bits(made := self.on_grid(grid, 2.0**x)) < least:
            x -= 0.002
        return made


def _bits(made: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Coded, scales included, as save_model writes them."""
    stored = 0
    for pair in made.values():
        for tensor in pair:
            raw = tensor.numel() * tensor.element_size()
            stored += min(raw, coded.encode(tensor).numel()) if coded.can(tensor) else raw
    return 8.0 * stored


def _digits(seed: int) -> Case:
    model, data = digits_vit(seed)
    return Case(model, data.train.inputs[:CALIBRATION], data.test.inputs, data.test.targets)


def _text(seed: int) -> Case:
    model, data = text_transformer()
    some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: CALIBRATION // 4]
    part = slice(64 * seed, 64 * (seed + 1))
    return Case(model, data.train.inputs[some], data.test.inputs[part], data.test.targets[part])


def _ours(case: Case, seed: int, bits: int, figures: Figures) -> float:
    model = copy.deepcopy(case.model)
    config = ProbabilisticInt8Config(bits, seed=seed, rows=())
    report = quantize_(model, config, lambda m: m(case.calibration), lambda m, fqn: fqn in case.layers)
    case.add(figures, model)
    took = 8.0 * sum(row.figures["coded bytes"] for row in report.layers)
    weights = sum(weight.numel() for weight in case.weights.values())
    entropy = sum(row.figures["entropy"] * case.weights[row.fqn].numel() for row in report.layers)
    figures.coded += took / weights / len(SEEDS)
    figures.entropy += entropy / weights / len(SEEDS)
    return took


def _compared(name: str, cases: list[Case], bits: int) -> Iterator[Row]:
    ours, fixed, peers = Figures(), Figures(), {grid: Figures() for grid in GRIDS}
    top = 2 ** (bits - 1) - 1
    for seed, case in zip(SEEDS, cases, strict=True):
        took = _ours(case, seed, bits, ours)
        for grid, peer in peers.items():
            case.add(peer, case.exchanged(case.nearest(GRIDS[grid], took)))
        case.add(fixed, case.exchanged(case.on_grid(GRIDS["step by row"], 1 / top, top)))
    title = f"{name}, {bits} bits/weight, {len(SEEDS)} seeds"
    yield Row(title, "coded bits/weight", ours.coded, "entropy it reports", ours.entropy, factor=1.02)
    for metric, label, lower in (("divergence", KL, True), ("agreement", "answers as the float model's", False)):
        figures = {grid: getattr(peer, metric) for grid, peer in peers.items()}
        best = (min if lower else max)(figures, key=figures.__getitem__)
        yield Row(title, label, getattr(ours, metric), f"{SAME}, {best}", figures[best], lower)
    for metric, label, lower in (("losses", "loss, nats", True), ("hits", "accuracy", False)):
        each = {grid: torch.cat(getattr(peer, metric)) for grid, peer in peers.items()}
        best = (min if lower else max)(each, key=lambda grid: float(each[grid].mean()))
        own, theirs = torch.cat(getattr(ours, metric)), float(each[best].mean())
        error = float((own - each[best]).std()) / len(own) ** 0.5 / theirs
        factor = 1.0 + error if lower else 1.0 - error
        yield Row(title, label, float(own.mean()), f"{SAME}, {best}", theirs, lower, factor)
    yield Row(title, KL, ours.divergence, "nearest, fixed width", fixed.divergence)


def rows() -> Iterator[Row]:
    for name, make in (("digits ViT", _digits), ("text transformer", _text)):
        cases = [make(seed) for seed in SEEDS]
        for bits in BITS:
            yield from _compared(name, cases, bits)
