"""What a model costs: bytes, parameters, and latency side by side with others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._measure import interleave, median_ratio
from bigmodel_ext.nn._compressed import Compressed
from bigmodel_ext.train.loop import evaluating


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run a block with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def state_bytes(model: nn.Module) -> int:
    """The bytes of all tensors in the model's state dict, tied ones counted once: what save_model writes besides a
    header (equal tensors are written once too, so a file may hold a little less)."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    sizes = {(t.data_ptr() or name, t.numel() * t.element_size()) for name, t in state.items()}
    return sum(size for _, size in sizes)


def parameters(model: nn.Module) -> int:
    """How many weights and biases the model stands for, zeros included, in whatever form they are stored."""
    hidden = sum(_dense_size(layer) for layer in _compressed(model))
    return hidden + sum(p.numel() for p in _dense_parameters(model))


def nonzero_weights(model: nn.Module) -> int:
    """Parameters that are not zero, by what is stored."""
    with torch.no_grad():
        weights = [layer.weight for layer in _compressed(model)]
        return sum(int(torch.count_nonzero(tensor)) for tensor in (*weights, *_dense_parameters(model)))


def _compressed(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Compressed)]


def _dense_size(layer: Any) -> int:
    """How many weights a compressed layer stands for."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return int(layer.in_features * layer.out_features)


def _dense_parameters(model: nn.Module) -> list[Tensor]:
    """All but what compressed layers store of their weights."""
    stored = {id(p) for layer in _compressed(model) for p in layer._parameters.values() if p is not layer.bias}
    return [p for p in model.parameters() if id(p) not in stored and p.is_floating_point()]


def latencies(models: Mapping[str, nn.Module], inputs: Tensor, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Each model's time for this batch on one thread, all taking turns.

    Returns:
        name -> {"latency_ms": median, "speedup": median over rounds of the first model's time over this one's}.
    """
    with threads(1):
        times = interleave([partial(_run, model, inputs) for model in models.values()], rounds)
    return {
        name: {"latency_ms": 1e3 * statistics.median(own), "speedup": median_ratio(times[0], own)}
        for name, own in zip(models, times, strict=True)
    }


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        return model(inputs)
