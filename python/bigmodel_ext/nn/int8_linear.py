"""Int8Linear: one byte per weight; activations quantized per row on the fly, or with a scale from calibration."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.nn._int8_weight import PackedInt8Linear, quantized_weight
from bigmodel_ext.nn._linear import require_int8_exact, require_linear


def _valid_scale(scale: float | None) -> float:
    if scale is None or not 0.0 <= scale < math.inf:
        raise ValueError(f"input_scale must be a finite number, at least 0, got {scale!r}")
    return float(scale)


class Int8Linear(PackedInt8Linear):
    """``y = act((q(x) @ weight_q.T) * scale(x) * weight_scale + bias)`` (see :func:`functional.int8_linear`); the
    activation is part of a model's plan in a file of ``save_model``, not of the state dict.

    With ``static_input`` the layer has a buffer ``input_scale``, float32, 0-d, which quantizes all of x (static
    quantization): nothing is looked for in x, and what exceeds ``127 * input_scale`` saturates.

    Resident are the packed weights (about one byte each; on CUDA devices not packed), ``weight_scale`` float32 [N] and
    ``bias``. The state dict is independent of the packing: ``weight_q`` int8 [N,K], ``weight_scale`` float32 [N],
    ``bias`` [N], ``input_scale`` []. Casts (``.to(torch.bfloat16)``, ``.half()``) change the bias only. The bias and
    the input get gradients.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype, under autocast too.
    """

    plain_devices = frozenset({"cuda"})
    input_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        static_input: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, activation=activation)
        self.register_buffer("input_scale", torch.zeros((), device=device) if static_input else None)
        if static_input:
            self.float_buffers = ("weight_scale", "input_scale")

    @classmethod
    def from_float(cls, linear: nn.Linear, input_scale: float | None = None, weight_scales: str = "max") -> Int8Linear:
        """Quantize per output: ``weight_scale = max_k |w| / 127``, ``weight_q = round_half_even(w * 127 / max_k |w|)``.
        A row with NaN or infinity yields NaN outputs (see :func:`functional.quantize_rows`). linear is not changed; its
        bias is shared. ``weight_scales="mse"`` looks for the scales with the least squared rounding error instead (see
        ``nn._int8_weight``). With an input_scale, activations are quantized by it.

        Raises:
            TypeError: linear is not an nn.Linear, or its weight not float32, bfloat16 or float16.
            ValueError: in_features exceeds 131071, weight_scales is neither "max" nor "mse", or input_scale is
                negative, infinite or NaN.
        """
        require_linear(linear)
        require_int8_exact(linear)
        layer: Int8Linear = cls._like(linear, static_input=input_scale is not None)
        if layer.input_scale is not None:
            layer.input_scale.fill_(_valid_scale(input_scale))
        q, scale = quantized_weight(linear.weight, weight_scales)
        layer.packed, layer.weight_scale = layer._pack(q), scale
        return layer

    def forward(self, x: Tensor) -> Tensor:
        k = self.in_features
        if self._activation == "none" and self.input_scale is None:
            return functional.int8_linear(x, self.packed, self.weight_scale, self.bias, in_features=k)
        return functional.int8_linear(
            x,
            self.packed,
            self.weight_scale,
            self.bias,
            activation=self._activation,
            in_features=k,
            input_scale=self.input_scale,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.input_scale is None else ", static_input=True")
