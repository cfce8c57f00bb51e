"""Int8SemiSparseLinear: int8 weights, two of every four neighbouring ones of a row stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import two_four
from bigmodel_ext.nn._linear import Activated, pruned, require_int8_exact, require_linear


class Int8SemiSparseLinear(Activated):
    """:class:`Int8Linear` on a 2:4 weight: equal to it bit for bit on the same int8 weights, at up to twice its rate on
    NVIDIA GPUs, and at its own on the CPU at best (see :func:`functional.int8_semi_sparse_linear`).

    ``values`` int8 and ``index`` uint8 (see ``formats.two_four.pack_int8``) and ``weight_scale`` float32 [N] are
    buffers and make up the state dict with ``bias``: five eighths of a byte per weight. The bias and the input get
    gradients.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype.
    """

    float_buffers = ("weight_scale",)
    stored = ("values", "index")
    values: Tensor
    index: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation
        tiles = (-(-out_features // two_four.TILE), -(-in_features // two_four.TILE), two_four.TILE)
        self.register_buffer("values", torch.zeros((*tiles, 16), dtype=torch.int8, device=device))
        # Positions 0 and 1 of every group: 0b0100 twice in a byte.
        self.register_buffer("index", torch.full((*tiles, 4), 0b01000100, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32, device=device))

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | None = None) -> Int8SemiSparseLinear:
        """Quantize as :meth:`Int8Linear.from_float` does, after zeroing weights where mask (bool [N,K], default:
        weight != 0) is False. linear is not changed; its bias is shared.

        Raises:
            TypeError: linear is not an nn.Linear, or its weight not float32, bfloat16 or float16.
            ValueError: mask is not bool [N,K] or keeps more than two of a group of four; the message names the first.
                Or in_features exceeds 131071.
        """
        require_linear(linear)
        require_int8_exact(linear)
        layer: Int8SemiSparseLinear = cls._like(linear)
        weight = pruned(linear.weight.detach(), mask)
        q, scale = functional.quantize_rows(weight)
        layer.values, layer.index = two_four.pack_int8(q, weight != 0 if mask is None else mask)
        layer.weight_scale = scale
        return layer

    @property
    def weight_q(self) -> Tensor:
        """int8 [N,K], unpacked on each access."""
        return two_four.unpack_int8(self.values, self.index, self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """weight_q * weight_scale, computed on each access; read-only. In the bias's dtype, else float32."""
        return (self.weight_q.float() * self.weight_scale[:, None]).to(self.float_dtype)

    def reset_parameters(self) -> None:
        """Zero the stored weights and the bias; the positions stay."""
        with torch.no_grad():
            for tensor in (self.values, self.weight_scale, *self.parameters()):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return functional.int8_semi_sparse_linear(
            x,
            self.values,
            self.index,
            self.weight_scale,
            self.bias,
            activation=self.activation,
            in_features=self.in_features,
        )

    def _prepare(self, *stored: Tensor) -> str | None:
        values, index = stored
        if values.dtype != torch.int8 or values.shape != self.values.shape:
            return f"values must be torch.int8 {list(self.values.shape)}, got {values.dtype} {list(values.shape)}"
        return two_four.invalid(index, self.out_features, self.in_features)
