"""Int8SparseLinear: int8 weights in blocks of 1x4, of which only those that are not zero are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import block
from bigmodel_ext.nn._linear import pruned, require_int8_exact, require_linear
from bigmodel_ext.nn._pattern import PanelLinear


class Int8SparseLinear(PanelLinear):
    """:class:`Int8Linear` on a block-sparse weight: equal to it bit for bit on the same int8 weights.

    ``values`` int8 [blocks,4], ``crow`` int32, ``col`` uint8 (see ``formats.block``) and ``weight_scale`` float32 [N]
    are buffers and make up the state dict with ``bias``; there rows are in their order, here sorted by length as the
    derived ``order`` int32 says. ``row_sum`` int32 [N] is derived too. About five bytes per stored block.

    x: [..., K] float32, bfloat16 or float16; the result is [..., N] in x's dtype.
    """

    float_buffers = ("weight_scale",)
    codable = ("values", "col", "weight_scale")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        panel: int = block.PANEL,
        activation: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation
        self.weight_scale: Tensor
        self.row_sum: Tensor
        self.register_buffer("values", torch.empty((0, 4), dtype=torch.int8, device=device))
        self._register_pattern(panel, device)
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("row_sum", torch.zeros(out_features, dtype=torch.int32, device=device), persistent=False)

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | None = None) -> Int8SparseLinear:
        """Quantize as :meth:`Int8Linear.from_float` does, after zeroing weights where mask (bool [N,K]) is False; store
        the 1x4 blocks that are not zero. linear is not changed; its bias is shared.

        Raises:
            TypeError: linear is not an nn.Linear, or its weight not float32, bfloat16 or float16.
            ValueError: mask is not bool [N,K], or in_features exceeds 131071.
        """
        require_linear(linear)
        require_int8_exact(linear)
        layer: Int8SparseLinear = cls._like(linear)
        q, scale = functional.quantize_rows(pruned(linear.weight.detach(), mask))
        layer.values, layer.crow, layer.col, layer.order, layer.row_sum = block.pack_sorted(q, layer.panel)
        layer.weight_scale = scale
        return layer

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Int8SparseLinear:
        """:meth:`from_dense` without a mask: what is zero already is left out."""
        return cls.from_dense(linear)

    @property
    def weight_q(self) -> Tensor:
        """int8 [N,K], unpacked on each access."""
        shape = (self.out_features, self.in_features, self.panel)
        return block.unpack(self.values, self.crow, self.col, *shape, self.order)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """weight_q * weight_scale, computed on each access; read-only. In the bias's dtype, else float32."""
        return (self.weight_q.float() * self.weight_scale[:, None]).to(self.float_dtype)

    def reset_parameters(self) -> None:
        """Zero the stored weights and the bias; the pattern stays."""
        with torch.no_grad():
            for tensor in (self.values, self.row_sum, self.weight_scale, *self.parameters()):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return functional.int8_sparse_linear(
            x,
            self.values,
            self.crow,
            self.col,
            self.weight_scale,
            self.row_sum,
            self.bias,
            panel=self.panel,
            order=self.order,
            activation=self.activation,
            in_features=self.in_features,
        )

    @property
    def columns(self) -> int:
        """Blocks to a row: ceil(K / 4)."""
        return -(-self.in_features // 4)

    def resize(self, stored: int) -> None:
        """Make room for another number of stored blocks; what they hold is undefined."""
        self.values, self.col = self.values.new_empty((stored, 4)), self.col.new_empty(stored)

    def _invalid_values(self, values: Tensor) -> str | None:
        fits = values.dtype == torch.int8 and values.dim() == 2 and values.shape[1] == 4
        return None if fits else f"values must be torch.int8 [blocks, 4], got {values.dtype} {list(values.shape)}"

    def _loaded(self) -> None:
        super()._loaded()
        if not self.values.is_meta:
            self.row_sum = self.weight_q.sum(1, dtype=torch.int32)
