"""SemiSparseLinear: stores two of every four neighbouring weights of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import two_four
from bigmodel_ext.nn._linear import CompressedLinear, require_linear


class SemiSparseLinear(CompressedLinear):
    """``y = x @ W.T + bias`` with W [N,K] in 2:4 form (see ``formats.two_four``).

    ``values`` is a Parameter: training moves the stored weights, zeros among them, and keeps their positions, which the
    buffer ``index`` uint8 holds. Half the bytes of a dense weight and 2 bits for each stored one.

    x: [..., K] in values' dtype, or bfloat16/float16 with float32 values; the result is [..., N] in x's dtype.
    """

    stored = ("values", "index")
    values: Tensor
    index: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        tiles = (-(-out_features // two_four.TILE), -(-in_features // two_four.TILE))
        self.values = nn.Parameter(torch.zeros((*tiles, 8, 2, two_four.TILE), device=device, dtype=dtype))
        # Positions 0 and 1 of every group: 0b0100 twice in a byte.
        index = torch.full((*tiles, two_four.TILE, 4), 0b01000100, dtype=torch.uint8, device=device)
        self.register_buffer("index", index)

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | None = None) -> SemiSparseLinear:
        """Keep the weights where mask (bool [N,K], default: weight != 0) is True. linear is not changed; its bias is
        shared.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: mask is not bool [N,K], or keeps more than two of a group of four; the message names the first.
        """
        require_linear(linear)
        values, index = two_four.pack(linear.weight.detach(), mask)
        layer: SemiSparseLinear = cls._like(linear)
        layer.index = index
        layer.values = nn.Parameter(values, requires_grad=linear.weight.requires_grad)
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dense [N,K], computed on each access; assigning into it changes nothing, gradients reach ``values``."""
        return two_four.unpack(self.values, self.index, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return functional.semi_sparse_linear(
            x, self.values, self.index, self.bias, out_features=self.out_features, in_features=self.in_features
        )

    def _prepare(self, *stored: Tensor) -> str | None:
        return two_four.invalid(stored[1], self.out_features, self.in_features)
