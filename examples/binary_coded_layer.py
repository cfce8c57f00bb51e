"""A linear layer in 1 to 4 bits a weight: how much smaller, how far off, and how much faster for one row."""

import time

import torch
from bigmodel_ext.nn import BinaryCodedLinear, Int8Linear
from torch import nn


def seconds(layer: nn.Module, x: torch.Tensor) -> float:
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        layer(x)
        best = min(best, time.perf_counter() - start)
    return best


def megabytes(layer: nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers())) / 1e6


torch.manual_seed(0)
torch.set_num_threads(1)
linear, x = nn.Linear(2048, 1024), torch.randn(1, 2048)
with torch.inference_mode():
    dense = seconds(linear, x)
    layers = {"int8": Int8Linear.from_float(linear)}
    for bits in (4, 3, 2, 1):
        layers[f"{bits} bits"] = BinaryCodedLinear.from_float(linear, bits=bits, group_size=128, iterations=3)
    for name, layer in layers.items():
        error = (layer(x) - linear(x)).norm() / linear(x).norm()
        print(
            f"{name}: {megabytes(layer):.2f} MB of {megabytes(linear):.2f}, output off by {error:.1%}, "
            f"{dense / seconds(layer, x):.1f}x as fast as float32"
        )
