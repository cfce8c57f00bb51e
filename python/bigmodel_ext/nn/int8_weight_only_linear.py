"""Int8WeightOnlyLinear: one byte per weight, activations stay float."""

from __future__ import annotations

from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.nn._int8_weight import PackedInt8Linear, quantized_weight
from bigmodel_ext.nn._linear import require_int8_exact, require_linear


class Int8WeightOnlyLinear(PackedInt8Linear):
    """``y = act((x @ weight_q.T) * weight_scale + bias)`` (see :func:`functional.int8_weight_only_linear`).

    Holds what :class:`Int8Linear` holds, in the same state dict: ``weight_q`` int8 [N,K], ``weight_scale`` float32 [N],
    ``bias`` [N]. Casts change the bias only. The bias and the input get gradients.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype, under autocast too.
    """

    @classmethod
    def from_float(cls, linear: nn.Linear, weight_scales: str = "max") -> Int8WeightOnlyLinear:
        """Quantize per output, as :meth:`Int8Linear.from_float`. linear is not changed; its bias is shared.

        Raises:
            TypeError: linear is not an nn.Linear, or its weight not float32, bfloat16 or float16.
            ValueError: in_features exceeds 131071, or weight_scales is neither "max" nor "mse".
        """
        require_linear(linear)
        require_int8_exact(linear)
        layer: Int8WeightOnlyLinear = cls._like(linear)
        q, scale = quantized_weight(linear.weight, weight_scales)
        layer.packed, layer.weight_scale = layer._pack(q), scale
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return functional.int8_weight_only_linear(
            x, self.packed, self.weight_scale, self.bias, activation=self._activation, in_features=self.in_features
        )
