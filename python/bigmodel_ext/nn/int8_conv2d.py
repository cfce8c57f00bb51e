"""Int8Conv2d: one byte per weight, activations quantized per image on the fly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import int8_conv
from bigmodel_ext.nn._compressed import PackedInt8
from bigmodel_ext.nn._conv import CompressedConv2d, require_conv, require_int8_exact
from bigmodel_ext.nn._int8_weight import quantized_weight


class Int8Conv2d(PackedInt8, CompressedConv2d):  # type: ignore[override]
    """``y = conv2d(q(x), weight_q) * scale(x) * weight_scale + bias`` (see :func:`functional.int8_conv2d`).

    Resident are the packed weights (about one byte each; twice that where a single group has 32 outputs, say: panels
    have 64), ``weight_scale`` float32 [N] and ``bias``. The state dict is independent of the packing: ``weight_q`` int8
    [N,C/groups,kh,kw], ``weight_scale`` float32 [N], ``bias`` [N]. Casts change the bias only. The bias and the input
    get gradients.

    x: [B,C,H,W] or [C,H,W] float32, bfloat16 or float16; the result is [B,N,OH,OW] in x's dtype and memory format
    (channels last is faster), under autocast too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        device = kwargs.get("device")
        zeros = torch.zeros(self._weight_shape, dtype=torch.int8, device=device)
        self._register_packed(self._pack(zeros), self.out_channels)

    @classmethod
    def from_float(cls, conv: nn.Conv2d, weight_scales: str = "max") -> Int8Conv2d:
        """Quantize per output: ``weight_scale = max |w| / 127``, ``weight_q = round_half_even(w * 127 / max |w|)``.
        ``weight_scales="mse"``: as in :meth:`Int8Linear.from_float`. An output with NaN or infinity in its weights is
        NaN. conv is not changed; its bias is shared.

        Raises:
            TypeError: conv is not an nn.Conv2d, or its weight not float32, bfloat16 or float16.
            ValueError: its padding_mode is not "zeros", or in_channels / groups * kh * kw exceeds 131071.
        """
        require_conv(conv)
        require_int8_exact(conv)
        layer: Int8Conv2d = cls._like(conv)
        q, scale = quantized_weight(conv.weight.flatten(1), weight_scales)
        layer.packed, layer.weight_scale = layer._pack(q.view(conv.weight.shape)), scale
        return layer

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _pack(self, weight_q: Tensor) -> Tensor:
        return int8_conv.pack(weight_q, self.groups)

    @property
    def weight_q(self) -> Tensor:
        """int8 [N,C/groups,kh,kw], unpacked on each access."""
        return int8_conv.unpack(self.packed, self.out_channels, self.kernel_size, self.in_channels // self.groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride, padding, dilation, groups = self.window
        return functional.int8_conv2d(
            x,
            self.packed,
            self.weight_scale,
            self.bias,
            stride,
            padding,
            dilation,
            groups,
            kernel_size,
            self.in_channels,
        )
