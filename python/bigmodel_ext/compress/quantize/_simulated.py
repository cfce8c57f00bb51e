"""Layers that compute in float what their int8 form will compute: the same rounding, the same scales, and gradients
that pass through the rounding as if it were not there (the straight-through estimator: Bengio et al. 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.functional import quantize_rows


class _Straight(torch.autograd.Function):
    """Gives `rounded` the gradient of x, where `inside` (everywhere, if it is None)."""

    @staticmethod
    def forward(x: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
        return rounded.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, inside = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(inside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return (grad if inside is None else torch.where(inside, grad, 0.0)).to(ctx.dtype), None, None


def straight(x: Tensor, rounded: Tensor, inside: Tensor | None = None) -> Tensor:
    """`rounded`, with the derivative 1 in x (0 where `inside` is False)."""
    result: Tensor = _Straight.apply(x, rounded, inside)  # type: ignore[no-untyped-call]
    return result


def rounded_rows(x: Tensor) -> Tensor:
    """``q * scale`` of :func:`functional.quantize_rows` over all dimensions of x but the first, float32."""
    q, scale = quantize_rows(x.detach().flatten(1) if x.dim() > 2 else x.detach())
    return straight(x, (q.float() * scale[:, None]).view(x.shape))


def rounded_by(x: Tensor, scale: Tensor) -> Tensor:
    """x rounded to ``scale * {-127 ... 127}`` as :func:`functional.int8_linear` does with an ``input_scale``, float32;
    what saturates has no gradient."""
    wide = x.detach().float()
    rounded = (wide * (1.0 / scale)).clamp(-127, 127).round() * scale
    return straight(x, torch.where(scale > 0, rounded, 0.0), wide.abs() <= 127 * scale)


class SimulatedInt8(nn.Module):
    """What the simulated layers share. The class is given to an existing layer, which keeps its parameters."""

    _bigmodel_simulated = True
    config: Any  # what it will be converted by


class SimulatedInt8Linear(SimulatedInt8, nn.Linear):
    """nn.Linear that computes ``x' W'^T + b`` in float32, x' and W' rounded as nn.Int8Linear rounds them: weights by
    output, x by row, or all of it by the buffer ``input_scale`` if the layer has one."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self._buffers.get("input_scale")
        with torch.autocast(x.device.type, enabled=False):
            rows = rounded_rows(x.reshape(-1, x.shape[-1])).view(x.shape) if scale is None else rounded_by(x, scale)
            bias = None if self.bias is None else self.bias.float()
            return F.linear(rows, rounded_rows(self.weight), bias).to(x.dtype)


class SimulatedInt8Conv2d(SimulatedInt8, nn.Conv2d):
    """nn.Conv2d that computes in float32 with its input rounded by image and its weight by output, as nn.Int8Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        images = x if x.dim() == 4 else x.unsqueeze(0)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            y = self._conv_forward(rounded_rows(images), rounded_rows(self.weight), bias).to(x.dtype)
        return y if x.dim() == 4 else y.squeeze(0)
