"""INT8 against torchao's dynamic int8: relative output error of each layer and end to end, on a vision transformer
trained on scikit-learn's digits and on a transformer block with outlier channels; then what static scales, SmoothQuant
and quantization-aware training leave of the accuracy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator

import bigmodel_ext as bm
import torch
from bigmodel_ext.compress.calibrate import layers_of, observe
from bigmodel_ext.compress.quantize import (
    Int8StaticActivationInt8WeightConfig,
    SmoothQuantConfig,
    convert,
    prepare,
    quantize_,
)
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit, outputs
from bigmodel_ext.train.tasks import digits
from bigmodel_ext.train.vit import Block, ViTConfig
from torch import Tensor, nn

from bench.quality._row import Row

PEER = "torchao dynamic int8"
DYNAMIC = bm.Int8DynamicActivationInt8WeightConfig(rows=())
BEST = bm.Int8DynamicActivationInt8WeightConfig("mse", rows=())
Made = Callable[[nn.Module], object]


def _torchao(model: nn.Module) -> nn.Module:
    logging.disable(logging.WARNING)  # about extensions that were built for other machines
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    theirs = copy.deepcopy(model)
    quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
    return theirs


def _relative(y: Tensor, wanted: Tensor) -> float:
    return float((y - wanted).norm() / wanted.norm())


def _layer_errors(model: nn.Module, x: Tensor, others: dict[str, nn.Module]) -> dict[str, dict[str, float]]:
    """By layer and model: the relative error of that model's layer on the inputs that the float model's layer sees."""
    found: dict[str, dict[str, float]] = {}

    def compare(fqn: str, layer: nn.Module, layer_input: Tensor, y: Tensor) -> None:
        found[fqn] = {name: _relative(m.get_submodule(fqn)(layer_input), y) for name, m in others.items()}

    observe(model, lambda m: m(x), layers_of(model), compare)
    return found


def _errors(case: str, model: nn.Module, x: Tensor, methods: dict[str, Made], by_layer: str) -> Iterator[Row]:
    models = {name: copy.deepcopy(model) for name in methods}
    for name, made in methods.items():
        made(models[name])
    models[PEER] = _torchao(model)
    for fqn, errors in _layer_errors(model, x, {name: models[name] for name in (by_layer, PEER)}).items():
        yield Row(f"{case}, {fqn}, {by_layer}", "relative output error", errors[by_layer], PEER, errors[PEER])
    wanted = outputs(model, x)
    theirs = _relative(outputs(models[PEER], x), wanted)
    for name in methods:
        yield Row(
            f"{case}, end to end, {name}",
            "relative output error",
            _relative(outputs(models[name], x), wanted),
            PEER,
            theirs,
        )


def _outlier_block() -> tuple[nn.Module, Tensor, Tensor]:
    """A block whose norms make a few channels some 40 times as large as the rest, as large language models have them;
    calibration data and others."""
    torch.manual_seed(0)
    block = Block(ViTConfig(width=256, depth=1, heads=8, mlp=1024)).eval()
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.weight[torch.randperm(256)[:6]] *= 40
    return block, torch.randn(16, 32, 256), torch.randn(16, 32, 256)


def rows() -> Iterator[Row]:
    data = digits.load(0)
    torch.manual_seed(0)
    model = digits.build({"width": 96, "depth": 2, "heads": 4, "mlp": 384})
    fit(model, data.train, CrossEntropy(), TrainConfig(12, 32, 2e-3), seed=0)

    def calibrate(m: nn.Module) -> None:
        m(data.train.inputs[:256])

    static = Int8StaticActivationInt8WeightConfig("mse", rows=())
    smooth = SmoothQuantConfig(weight_scales="mse", rows=())
    methods: dict[str, Made] = {
        "dynamic": lambda m: quantize_(m, DYNAMIC),
        "dynamic, mse scales": lambda m: quantize_(m, BEST),
        "SmoothQuant": lambda m: quantize_(m, smooth, calibrate),
    }
    yield from _errors("digits ViT", model, data.test.inputs, methods, "dynamic, mse scales")
    block, calibration, x = _outlier_block()
    methods["SmoothQuant"] = lambda m: quantize_(m, smooth, lambda n: n(calibration))
    yield from _errors("block with outliers", block, x, methods, "dynamic, mse scales")
    yield from _accuracies(model, data, calibrate, static)


def _accuracies(
    model: nn.Module, data: digits.Data, calibrate: Made, static: Int8StaticActivationInt8WeightConfig
) -> Iterator[Row]:
    whole = accuracy(model, data.test)
    smooth = SmoothQuantConfig(static=True, rows=())

    def aware(m: nn.Module) -> None:
        prepare(m, static, calibrate)
        fit(m, data.train, CrossEntropy(), TrainConfig(3, 32, 3e-4), seed=1)
        convert(m)

    methods: dict[str, Made] = {
        "dynamic": lambda m: quantize_(m, DYNAMIC),
        "static": lambda m: quantize_(m, static, calibrate),
        "SmoothQuant, static": lambda m: quantize_(m, smooth, calibrate),
        "static, trained with it": aware,
    }
    for name, made in methods.items():
        ours = copy.deepcopy(model)
        made(ours)
        yield Row(f"digits ViT, {name}", "test accuracy", accuracy(ours, data.test), "float32", whole, False, 0.99)
