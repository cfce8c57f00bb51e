"""Weights drawn from a distribution under a budget of bits: what a file takes, and what the answers lose."""

import copy
import os

import torch
from bigmodel_ext import load_model, save_model
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config, quantize_
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit, outputs
from bigmodel_ext.train.tasks import digits
from torch.nn import functional as F

torch.manual_seed(0)
data = digits.load(seed=0)
settings = {"width": 64, "depth": 1, "heads": 2, "mlp": 256}
model = digits.build(settings)
fit(model, data.train, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=2e-3), seed=0)


def told(name, module):
    save_model(module, "model.safetensors")
    again = load_model(digits.build(settings), "model.safetensors")  # as decoded from the file
    loss = F.cross_entropy(outputs(again, data.test.inputs), data.test.targets)
    size = os.path.getsize("model.safetensors")
    print(f"{name}: file {size:,} bytes, loss {loss:.4f}, accuracy {accuracy(again, data.test):.1%}")


told("float32", model)
for bits in (2, 3, 4, 6):
    small = copy.deepcopy(model)
    config = ProbabilisticInt8Config(bits_per_weight=bits, rows=())  # rows=(): whether it gets faster or not
    report = quantize_(small, config, lambda m: m(data.train.inputs[:256]))
    numel = {fqn: model.get_submodule(fqn).weight.numel() for fqn in report.converted}
    used = 8 * sum(report[fqn].figures["coded bytes"] for fqn in numel) / sum(numel.values())
    entropy = sum(report[fqn].figures["entropy"] * n for fqn, n in numel.items()) / sum(numel.values())
    told(f"{used:.2f} bits/weight (entropy {entropy:.2f})", small)
