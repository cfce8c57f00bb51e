"""BlockSparseLinear: stores, multiplies and trains only some square blocks of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_ext import functional
from bigmodel_ext.formats import block_sparse
from bigmodel_ext.nn._linear import require_linear
from bigmodel_ext.nn._pattern import PatternLinear


class BlockSparseLinear(PatternLinear):
    """``y = x @ W.T + bias`` with W [N,K] in square blocks (see ``formats.block_sparse``), dense inside a block.

    ``values`` [blocks, S, S] is a Parameter: training moves the weights of stored blocks, zeros among them, and keeps
    the pattern. ``crow`` and ``col`` int32 are buffers. Little more than four bytes per stored float32 weight. A state
    dict with another number or size of blocks can be loaded (values are resized: do so before an optimizer is made).

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
        blocksize: int = block_sparse.BLOCKSIZE,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        block_sparse.require_blocksize(blocksize)
        self.blocksize = blocksize
        self.values = nn.Parameter(torch.empty((0, blocksize, blocksize), device=device, dtype=dtype))
        self.register_buffer("crow", torch.zeros(self._block_rows(blocksize) + 1, dtype=torch.int32, device=device))
        self.register_buffer("col", torch.empty(0, dtype=torch.int32, device=device))

    def _block_rows(self, blocksize: int) -> int:
        return -(-self.out_features // blocksize)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, mask: Tensor | None = None, blocksize: int = block_sparse.BLOCKSIZE
    ) -> BlockSparseLinear:
        """Keep the blocks in which mask (bool [N,K], default: weight != 0) is True somewhere; what it leaves out of
        them is set to 0. linear is not changed; its bias is shared.

        Raises:
            TypeError: linear is not an nn.Linear, or blocksize not an int.
            ValueError: mask is not bool [N,K], or blocksize not 16, 32 or 64.
        """
        require_linear(linear)
        values, crow, col = block_sparse.pack(linear.weight.detach(), mask, blocksize)
        layer: BlockSparseLinear = cls._like(linear, blocksize=blocksize)
        layer.crow, layer.col = crow, col
        layer.values = nn.Parameter(values, requires_grad=linear.weight.requires_grad)
        return layer

    @property
    def nnz(self) -> int:
        """How many weights are stored, zeros and padding included."""
        return self.col.shape[0] * self.blocksize**2

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dense [N,K], computed on each access; assigning into it changes nothing, gradients reach ``values``."""
        return block_sparse.unpack(self.values, self.crow, self.col, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return functional.block_sparse_linear(
            x, self.values, self.crow, self.col, self.bias, out_features=self.out_features, in_features=self.in_features
        )

    @property
    def columns(self) -> int:
        """Block columns."""
        return -(-self.in_features // self.blocksize)

    def resize(self, stored: int) -> None:
        """Make room for another number of blocks (the same Parameter); what they hold is undefined."""
        self.values.data = self.values.data.new_empty((stored, self.blocksize, self.blocksize))
        self.values.grad = None
        self.col = self.col.new_empty(stored)

    def _prepare(self, *stored: Tensor) -> str | None:
        values, crow, col = stored
        sizes = tuple(values.shape[1:])
        if len(sizes) != 2 or sizes[0] != sizes[1] or sizes[0] not in (16, 32, 64) or not values.is_floating_point():
            return (
                "values must be floating point [blocks, S, S] with S 16, 32 or 64, "
                f"got {values.dtype} {list(values.shape)}"
            )
        blocksize = sizes[0]
        problem = block_sparse.invalid(crow, col, self.out_features, self.in_features, blocksize)
        if problem is None and values.shape[:1] != col.shape:
            problem = f"values must have {col.shape[0]} entries, one for each of col, got {values.shape[0]}"
        if problem is None and values.shape != self.values.shape:
            self.blocksize, self.crow = blocksize, self.crow.new_empty(crow.shape)
            self.resize(col.shape[0])
        return problem

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocksize={self.blocksize}"
