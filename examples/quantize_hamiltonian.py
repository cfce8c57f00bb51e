"""Weights as spins: code a small transformer's layers with 1 to 4 bits a weight, and see what its outputs lose."""

import copy

import torch
from bigmodel_ext.compress.quantize import HamiltonianConfig, quantize_
from bigmodel_ext.nn import BinaryCodedLinear
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits
from torch import nn

torch.manual_seed(0)
data = digits.load(seed=0)
model = digits.build({"width": 64, "depth": 1, "heads": 2, "mlp": 256})
fit(model, data.train, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=2e-3), seed=0)
print(f"float32: accuracy {accuracy(model, data.test):.1%}")


def inner(module: nn.Module, fqn: str) -> bool:
    return fqn.startswith("blocks.")


for bits in (1, 2, 3, 4):
    coded = copy.deepcopy(model)
    config = HamiltonianConfig(bits=bits, group_size=64, rows=())  # rows=(): whether it gets faster or not
    report = quantize_(coded, config, lambda m: m(data.train.inputs), inner)

    plain = copy.deepcopy(model)  # the same code, found without data
    for fqn in report.converted:
        layer = BinaryCodedLinear.from_float(model.get_submodule(fqn), bits, 64)
        plain.get_submodule(fqn.rpartition(".")[0]).register_module(fqn.rpartition(".")[2], layer)

    figures = report["blocks.0.fc1"].figures
    print(
        f"{figures['bits/weight']:.2f} bits a weight: accuracy {accuracy(coded, data.test):.1%}, coded without data "
        f"{accuracy(plain, data.test):.1%}; energy {figures['energy nearest']:.3f} -> {figures['energy descent']:.3f}"
    )
