"""SparseConv2d: stores, multiplies and trains only some of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import csr
from bigmodel_ext.nn._conv import CompressedConv2d, require_conv
from bigmodel_ext.nn._pattern import SparseValues, panel_of_weight


class SparseConv2d(SparseValues, CompressedConv2d):
    """``y = conv2d(x, W) + bias`` with W.flatten(1) [N, C/groups * kh * kw] in panel-CSR (see ``formats.csr``).

    State, training and size are :class:`SparseLinear`'s: ``values`` [nnz] is a Parameter, ``crow`` int32 and ``col``
    uint8 are buffers. The forward pass costs what is stored, the backward pass what a dense convolution's does.

    x: [B,C,H,W] or [C,H,W] in values' dtype, or bfloat16/float16 with float32 values; the result is [B,N,OH,OW] in x's
    dtype and memory format.
    """

    def __init__(self, *args: Any, panel: int = csr.PANEL, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._register_values(panel, kwargs.get("device"), kwargs.get("dtype"))

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None, panel: int | None = None) -> SparseConv2d:
        """Keep the weights where mask (bool [N,C/groups,kh,kw], default: weight != 0) is True. conv is not changed; its
        bias is shared. panel: columns to a panel, 1 to 256; by default what is usually fastest.

        Raises:
            TypeError: conv is not an nn.Conv2d.
            ValueError: mask is not bool of the weight's shape, or conv's padding_mode is not "zeros".
        """
        require_conv(conv)
        weight = conv.weight.detach()
        if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
            raise ValueError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}")
        layer: SparseConv2d = cls._like(conv, panel=panel_of_weight(weight, mask) if panel is None else panel)
        layer._store(weight.flatten(1), None if mask is None else mask.flatten(1), conv.weight.requires_grad)
        return layer

    @property
    def outputs(self) -> int:
        """N."""
        return self.out_channels

    @property
    def columns(self) -> int:
        """K."""
        return math.prod((self.in_channels // self.groups, *self.kernel_size))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dense [N,C/groups,kh,kw], computed on each access; assigning into it changes nothing, gradients reach
        ``values``."""
        dense = csr.unpack(self.values, self.crow, self.col, self.outputs, self.columns, self.panel)
        return dense.view(self.outputs, -1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride, padding, dilation, groups = self.window
        return functional.sparse_conv2d(
            x, self.values, self.crow, self.col, self.bias, stride, padding, dilation, groups,
            kernel_size=kernel_size, out_channels=self.out_channels, panel=self.panel,
            in_channels=self.in_channels,
        )  # fmt: skip
