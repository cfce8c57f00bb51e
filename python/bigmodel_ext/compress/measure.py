"""What a model costs: bytes, parameters, and latency side by side with others."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bigmodel_ext._measure import interleave, median_ratio
from bigmodel_ext.nn import BinaryCodedLinear, Int8Linear, Int8SparseLinear, Int8WeightOnlyLinear, SparseLinear
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
    """The bytes of all tensors in the model's state dict, which is what save_model writes besides a header (equal
    tensors are written once, so a file may hold a little less)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def parameters(model: nn.Module) -> int:
    """How many weights and biases the model stands for, zeros included, in whatever form they are stored."""
    hidden = sum(
        layer.in_features * layer.out_features
        for layer in model.modules()
        if isinstance(layer, (BinaryCodedLinear, Int8Linear, Int8SparseLinear, Int8WeightOnlyLinear, SparseLinear))
    )
    stored = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    own = sum(layer.values.numel() for layer in model.modules() if isinstance(layer, SparseLinear))
    return hidden + stored - own


def nonzero_weights(model: nn.Module) -> int:
    """Parameters that are not zero, by what is stored."""
    with torch.no_grad():
        matrices = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
        ids = {id(p) for p in matrices}
        values = {id(layer.values) for layer in model.modules() if isinstance(layer, SparseLinear)}
        rest = [p for p in model.parameters() if id(p) not in ids | values]
        return sum(int(torch.count_nonzero(tensor)) for tensor in (*matrices, *rest))


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
