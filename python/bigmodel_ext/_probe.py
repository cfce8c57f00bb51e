"""How a layer is tried out: what to call it with, and what it is compared with. One entry per class of dense layer; its
compressed forms subclass it and share the entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bigmodel_ext import functional
from bigmodel_ext._reference import activate
from bigmodel_ext._surgery import device_of
from bigmodel_ext.nn import FusedDropout
from bigmodel_ext.nn._conv import conv_arguments

Run = Callable[[Tensor], Tensor]

CONV_IMAGE = 28  # pixels each way of the images that a convolution is timed with, one a call for each IMAGE_ROWS rows
IMAGE_ROWS = 128
DROPOUT_FEATURES = 1024  # columns that a FusedDropout without a bias is timed with: it does not know its own


@dataclass(frozen=True)
class Probe:
    """numel(layer): weights and biases it has or stands for; inputs(layer, rows): random activations; run(layer): what
    calls the layer; dense(layer): what a converted layer stands for, of the same sizes and dtype, weights arbitrary."""

    numel: Callable[[Any], int]
    inputs: Callable[[Any, int], Tensor]
    run: Callable[[Any], Run]
    dense: Callable[[Any], Run]


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What the layer computes in: an int8 layer without a bias does not know, and is taken for float32."""
    return next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)


def _same(layer: nn.Module) -> Run:
    return layer


def _linear_numel(layer: nn.Linear) -> int:
    return layer.out_features * (layer.in_features + (layer.bias is not None))


def _linear_inputs(layer: nn.Linear, rows: int) -> Tensor:
    return torch.randn(rows, layer.in_features, device=device_of(layer), dtype=dtype_of(layer))


def _dense_linear(layer: nn.Linear) -> Run:
    shape, placed = (layer.in_features, layer.out_features), {"device": device_of(layer), "dtype": dtype_of(layer)}
    dense = nn.utils.skip_init(nn.Linear, *shape, bias=layer.bias is not None, **placed)
    for parameter in dense.parameters():  # unwritten memory may be a page of zeros over and over, hence in cache
        nn.init.constant_(parameter, 0.5)
    activation = getattr(layer, "activation", "none")
    return dense if activation == "none" else lambda x: activate(dense(x), activation)


def _conv_numel(layer: nn.Conv2d) -> int:
    k = math.prod((layer.in_channels // layer.groups, *layer.kernel_size))
    return layer.out_channels * (k + (layer.bias is not None))


def _conv_inputs(layer: nn.Conv2d, rows: int) -> Tensor:
    """Large enough for the kernel window even without padding."""
    size = (max(CONV_IMAGE, d * (k - 1) + 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    images = -(-rows // IMAGE_ROWS)
    return torch.randn(images, layer.in_channels, *size, device=device_of(layer), dtype=dtype_of(layer))


def _dense_conv(layer: nn.Conv2d) -> Run:
    placed: dict[str, Any] = {"device": device_of(layer), "dtype": dtype_of(layer)}
    dense = nn.utils.skip_init(nn.Conv2d, *conv_arguments(layer), bias=layer.bias is not None, **placed)
    for parameter in dense.parameters():  # as in _dense_linear
        nn.init.constant_(parameter, 0.5)
    return dense


def _dropout_numel(layer: FusedDropout) -> int:
    return 0 if layer.bias is None else layer.bias.numel()


def _dropout_inputs(layer: FusedDropout, rows: int) -> Tensor:
    features = DROPOUT_FEATURES if layer.bias is None else layer.bias.shape[0]
    return torch.randn(rows, features, device=device_of(layer), dtype=dtype_of(layer))


def _fused_dropout(layer: FusedDropout) -> Run:
    """As in training, whatever mode the layer is in."""
    seed = torch.zeros((), dtype=torch.int64, device=device_of(layer))
    return lambda x: functional.fused_dropout(x, layer.p, True, layer.bias, layer.activation, seed=seed)


def _eager_dropout(layer: FusedDropout) -> Run:
    return lambda x: F.dropout(activate(x if layer.bias is None else x + layer.bias, layer.activation), layer.p)


PROBES: Mapping[type[nn.Module], Probe] = {
    nn.Conv2d: Probe(_conv_numel, _conv_inputs, _same, _dense_conv),
    nn.Linear: Probe(_linear_numel, _linear_inputs, _same, _dense_linear),
    nn.Dropout: Probe(_dropout_numel, _dropout_inputs, _fused_dropout, _eager_dropout),
}


def probe_of(layer: nn.Module) -> Probe:
    return next(probe for kind, probe in PROBES.items() if isinstance(layer, kind))


class Recorder(TorchDispatchMode):
    """Notes this package's ops that run inside the block, with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler, which takes seconds, only to exclude this class from it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "bigmodel_ext":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))
