"""Weights drawn from a distribution under a budget of bits: what a file takes, and what the answers lose."""

import copy
import os

import torch
from bigmodel_ext import save_model
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config, quantize_
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits

torch.manual_seed(0)
data = digits.load(seed=0)
model = digits.build({"width": 64, "depth": 1, "heads": 2, "mlp": 256})
fit(model, data.train, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=2e-3), seed=0)
save_model(model, "float.safetensors")
print(f"float32: accuracy {accuracy(model, data.test):.1%}, file {os.path.getsize('float.safetensors'):,} bytes")

for bits in (2, 3, 4, 6):
    small = copy.deepcopy(model)
    config = ProbabilisticInt8Config(bits_per_weight=bits, rows=())  # rows=(): whether it gets faster or not
    report = quantize_(small, config, lambda m: m(data.train.inputs[:256]))
    save_model(small, "small.safetensors")
    fc1 = report["blocks.0.fc1"].figures
    print(
        f"{bits} bits/weight: accuracy {accuracy(small, data.test):.1%}, file {os.path.getsize('small.safetensors'):,} "
        f"bytes; fc1: entropy {fc1['entropy']:.2f} bits, error {fc1['distortion']:.3g}, rounded to nearest "
        f"at the same entropy {fc1['nearest']:.3g}, E[q] = w: {bool(fc1['unbiased'])}"
    )
