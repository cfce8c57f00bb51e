"""What the compressed convolutions share: nn.Conv2d's attributes without its dense weight."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import nn

from bigmodel_ext.functional import INT8_MAX_K
from bigmodel_ext.nn._compressed import Compressed

Size = int | tuple[int, int]
Layer = TypeVar("Layer", bound="CompressedConv2d")


def require_conv(conv: nn.Conv2d) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
    if conv.padding_mode != "zeros":
        raise ValueError(f"conv's padding_mode must be 'zeros', got {conv.padding_mode!r}")


def require_int8_exact(conv: nn.Conv2d) -> None:
    k = math.prod((conv.in_channels // conv.groups, *conv.kernel_size))
    if k > INT8_MAX_K:
        raise ValueError(
            f"in_channels / groups * kernel height * width must be at most {INT8_MAX_K} for an exact int32 sum, got {k}"
        )


class CompressedConv2d(Compressed, nn.Conv2d):
    """An nn.Conv2d whose weight is stored in another form. Subclasses register their tensors after this constructor,
    whose arguments are nn.Conv2d's. padding_mode must be "zeros"."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        shape = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        mode: Any = padding_mode
        template = nn.Conv2d(*shape, bias=False, padding_mode=mode, device="meta")  # checks the arguments
        require_conv(template)
        for name, value in vars(template).items():
            if name not in vars(self):
                setattr(self, name, value)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def _like(cls: type[Layer], conv: nn.Conv2d, **kwargs: Any) -> Layer:
        """An unfilled layer of conv's shape, in its mode, that takes over its bias (the same Parameter)."""
        layer = cls(*conv_arguments(conv), bias=False, device=conv.weight.device, **kwargs)
        layer.bias = conv.bias
        return layer.train(conv.training)

    @property
    def window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """kernel_size, stride, padding (top, bottom, left, right), dilation, groups."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return self.kernel_size, self.stride, (top, bottom, left, right), self.dilation, self.groups

    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the stored weights, in this layer's mode; its bias is a copy."""
        weight = self.weight.detach()
        placed: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        conv = nn.Conv2d(*conv_arguments(self), bias=self.bias is not None, **placed)
        with torch.no_grad():
            conv.weight.copy_(weight)
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)


def conv_arguments(conv: nn.Conv2d) -> tuple[int, int, Any, Any, Any, Any, int]:
    """What nn.Conv2d is called with for a convolution of conv's shape, without bias."""
    return (
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    )  # fmt: skip
