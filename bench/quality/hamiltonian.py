"""Hamiltonian quantization against peers that get at least as many bits, scales and zero points counted.

Layers of trained models with the activations of their own data, and one of random weights on correlated inputs. Held
out data are measured: ||X (V - W)^T|| / ||X W^T|| over all layers of a kind, and the model's loss with all its coded
layers (activations stay float for everyone). HQQ is left out, with a message, if the package is not installed.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from bigmodel_ext.compress.calibrate import layers_of, observe, rows_of, second_moments
from bigmodel_ext.compress.quantize import HamiltonianConfig
from bigmodel_ext.compress.quantize.hamiltonian import spins_of
from bigmodel_ext.functional import ising_decode
from bigmodel_ext.nn import BinaryCodedLinear
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, fit
from bigmodel_ext.train.tasks import digits, text
from torch import Tensor, nn
from torch.nn import functional as F

from bench.quality import _grids
from bench.quality._row import Row

GROUP = 128
BITS = (2, 3, 4)
Weights = dict[str, Tensor]


@dataclass
class Case:
    """Layers by name with their moments and held out inputs; `logits` of their model with other weights, if any."""

    name: str
    layers: dict[str, nn.Linear]
    moments: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Callable[[Weights], Tensor] | None = None
    targets: Tensor | None = None

    def kinds(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for fqn in self.layers:
            found.setdefault(fqn.rpartition(".")[2], []).append(fqn)
        return found

    def error(self, weights: Weights, names: list[str]) -> float:
        wrong = whole = 0.0
        for fqn in names:
            x, weight = self.inputs[fqn], self.layers[fqn].weight
            wrong += float((x @ (weights[fqn] - weight).T).square().sum(dtype=torch.float64))
            whole += float((x @ weight.T).square().sum(dtype=torch.float64))
        return math.sqrt(wrong / whole)


def _of_model(name: str, model: nn.Module, calibration: Tensor, held_out: Tensor, targets: Tensor) -> Case:
    layers = layers_of(model, lambda layer, fqn: fqn.startswith("blocks."), (nn.Linear,))
    inputs: dict[str, Tensor] = {}
    observe(model, lambda m: m(held_out), layers, lambda fqn, layer, x, y: inputs.update({fqn: rows_of(layer, x)}))

    def logits(weights: Weights) -> Tensor:
        other = copy.deepcopy(model)
        for fqn, weight in weights.items():
            other.get_submodule(fqn).weight.copy_(weight)  # type: ignore[operator,union-attr]
        found: Tensor = other.eval()(held_out)
        return found.flatten(0, -2)

    linears = {fqn: layer for fqn, layer in layers.items() if isinstance(layer, nn.Linear)}
    return Case(
        name, linears, second_moments(model, lambda m: m(calibration), layers), inputs, logits, targets.flatten()
    )


def _digits() -> Case:
    torch.manual_seed(0)
    data, model = digits.load(0), digits.build({"width": 128, "depth": 2, "heads": 4, "mlp": 512})
    fit(model, data.train, CrossEntropy(), TrainConfig(epochs=12, batch_size=32, learning_rate=1e-3), seed=0)
    with torch.no_grad():
        return _of_model("digits ViT", model.eval(), data.train.inputs, data.test.inputs, data.test.targets)


def _text() -> Case:
    torch.manual_seed(0)
    data = text.load(0)
    model = text.build({"width": 128, "depth": 2, "heads": 4, "kv_heads": 2, "mlp": 384})
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=4e-3, examples=1024)
    fit(model, data.train, CrossEntropy(0.0), config, seed=0)
    with torch.no_grad():
        calibration = data.train.inputs[torch.randperm(len(data.train))[:64]]
        return _of_model("text transformer", model.eval(), calibration, data.test.inputs[:64], data.test.targets[:64])


def _synthetic() -> Case:
    generator = torch.Generator().manual_seed(0)
    n, k, m = 256, 512, 4096
    mix = torch.randn(k, k, generator=generator) * torch.linspace(1, 0.02, k) / k**0.5
    x = (torch.randn(2 * m, k, generator=generator) * torch.linspace(1, 0.02, k)) @ mix
    layer = nn.Linear(k, n)
    layer.weight.data = torch.randn(n, k, generator=generator) / k**0.5
    return Case("synthetic 512 -> 256", {"layer": layer}, {"layer": x[:m].T @ x[:m] / m}, {"layer": x[m:]})


def _ours(case: Case, bits: int) -> Weights:
    found = {}
    for fqn, layer in case.layers.items():
        state = spins_of(layer, case.moments[fqn], HamiltonianConfig(bits=bits, group_size=GROUP))
        found[fqn] = ising_decode(state.codes, state.alpha, GROUP)
    return found


def _overhead(k: int, bits: int) -> float:
    """Bits a weight of K inputs that our scales take."""
    return 16 * bits * -(-k // GROUP) / k


def _fits(k: int, bits: int, bits_a_group: int, even: bool) -> int:
    """The largest groups whose own bits are not fewer than ours: a divisor of K if `even`, else a multiple of 8."""
    sizes = [g for g in range(8, k + 1, 8) if -(-k // g) * bits_a_group >= _overhead(k, bits) * k]
    return max(g for g in sizes if not even or k % g == 0)


def _best_gptq(case: Case, fqn: str, bits: int, group_size: int, by_diagonal: bool) -> Tensor:
    """With its usual damping or with ours, whichever is better on the held out data: it is not to lose by that."""
    weight, moments = case.layers[fqn].weight.data, case.moments[fqn]
    found = [
        _grids.gptq(weight, moments, bits, group_size, d, by_diagonal) for d in (0.01, HamiltonianConfig().damping)
    ]
    return min(found, key=lambda coded: case.error({fqn: coded}, [fqn]))


def _peers(case: Case, bits: int) -> Iterator[tuple[str, Weights, Callable[[int], float]]]:
    """Name, decoded weights, and bits a weight of K inputs."""
    size = {layer.in_features: _fits(layer.in_features, bits, 16 + bits, False) for layer in case.layers.values()}
    each = lambda code: {f: code(f, layer.weight.data, size[layer.in_features]) for f, layer in case.layers.items()}  # noqa: E731
    count = lambda k: bits + -(-k // size[k]) * (16 + bits) / k  # noqa: E731
    yield "round to nearest", each(lambda f, w, g: _grids.rounded(w, bits, g)), count
    for name, by_diagonal in (("GPTQ", False), ("GPTQ, act order", True)):
        yield name, each(lambda f, w, g, a=by_diagonal: _best_gptq(case, f, bits, g, a)), count  # type: ignore[misc]
    plain = {fqn: BinaryCodedLinear.from_float(layer, bits, GROUP).weight for fqn, layer in case.layers.items()}
    yield "alternating binary coding", plain, lambda k: bits + _overhead(k, bits)
    if importlib.util.find_spec("hqq") is None:
        print("HQQ is left out: the hqq package is not installed", file=sys.stderr)
        return
    even = {k: _fits(k, bits, 32, True) for k in size}
    coded = {f: _grids.hqq(layer.weight.data, bits, even[layer.in_features]) for f, layer in case.layers.items()}
    yield "HQQ", coded, lambda k: bits + 32 / even[k]


def rows() -> Iterator[Row]:
    for make in (_digits, _text, _synthetic):
        case = make()
        with torch.no_grad():
            for bits in BITS:
                yield from _rows(case, bits)


def _rows(case: Case, bits: int) -> Iterator[Row]:
    ours, peers = _ours(case, bits), list(_peers(case, bits))
    for kind, names in case.kinds().items():
        k = case.layers[names[0]].in_features
        title = f"{case.name}, {kind}, {bits} bits ({bits + _overhead(k, bits):.3g} a weight)"
        for peer, weights, count in peers:
            assert count(k) >= bits + _overhead(k, bits), f"{peer} has {count(k)} bits, we {bits + _overhead(k, bits)}"
            theirs = case.error(weights, names)
            yield Row(title, "output error", case.error(ours, names), f"{peer} ({count(k):.3g})", theirs)
    if case.logits is None or case.targets is None:
        return
    dense, own, title = case.logits({}), case.logits(ours), f"{case.name}, {bits} bits"
    for peer, weights, _ in peers:
        theirs_too = case.logits(weights)
        yield Row(title, "KL from float32's answers, nats", _kl(dense, own), peer, _kl(dense, theirs_too))
        yield Row(title, "loss, nats", _loss(own, case.targets), peer, _loss(theirs_too, case.targets))


def _kl(dense: Tensor, other: Tensor) -> float:
    return float(F.kl_div(other.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="batchmean"))


def _loss(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits, targets))
