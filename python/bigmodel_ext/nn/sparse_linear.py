"""SparseLinear: stores, multiplies and trains only some of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import csr
from bigmodel_ext.nn._linear import require_linear
from bigmodel_ext.nn._pattern import PanelLinear, SparseValues, panel_of_weight

LAYOUTS = ("auto", "panel_csr")


class SparseLinear(SparseValues, PanelLinear):
    """``y = act(x @ W.T + bias)`` with W [N,K] in panel-CSR (see ``formats.csr``).

    ``values`` [nnz] is a Parameter: training moves the stored weights and keeps the pattern. ``crow`` int32, ``col``
    uint8 and ``order`` int32 are buffers; rows lie sorted by length. About five bytes per stored float32 weight.
    The state dict holds ``values``, ``crow`` and ``col`` (copies, unsorted: as ``formats.csr.pack`` makes them) and
    ``bias``. One with another number of stored weights can be loaded (values are resized: do so before an optimizer is
    made).

    x: [..., K] in values' dtype, or bfloat16/float16 with float32 values; the result is [..., N] in x's dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        panel: int = csr.PANEL,
        activation: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation
        self._register_values(panel, device, dtype)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, mask: Tensor | None = None, layout: str = "auto", panel: int | None = None
    ) -> SparseLinear:
        """Keep the weights where mask (bool [N,K], default: weight != 0) is True. linear is not changed; its bias is
        shared. panel: columns to a panel, 1 to 256; by default what is usually fastest for this share of weights.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: layout is unknown, mask is not bool [N,K], or panel is out of range.
        """
        require_linear(linear)
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        weight = linear.weight.detach()
        layer: SparseLinear = cls._like(linear, panel=panel_of_weight(weight, mask) if panel is None else panel)
        layer._store(weight, mask, linear.weight.requires_grad)
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dense [N,K], computed on each access; assigning into it changes nothing, gradients reach ``values``."""
        shape = (self.out_features, self.in_features, self.panel)
        return csr.unpack(self.values, self.crow, self.col, *shape, self.order)

    def forward(self, x: Tensor) -> Tensor:
        return functional.sparse_linear(
            x,
            self.values,
            self.crow,
            self.col,
            self.bias,
            out_features=self.out_features,
            panel=self.panel,
            order=self.order,
            activation=self.activation,
            in_features=self.in_features,
        )

    @property
    def columns(self) -> int:
        """K."""
        return self.in_features
