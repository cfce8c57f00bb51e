"""Linear layers with sparse weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_ext._reference.dropout import activate
from bigmodel_ext._reference.int8 import int8_linear


def order_rows(n: int) -> int:
    """Rows of a block within which `order` (see formats.csr) permutes; the kernels' panel_csr.h has the same."""
    blocks = 2 * -(-n // 1024)
    return (-(-n // blocks) + 15) // 16 * 16 if blocks else 16


def panel_rows_columns(
    crow: Tensor, col: Tensor, n: int, panel: int, order: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every stored entry of a panel-CSR matrix (see formats.csr)."""
    counts = crow.diff().long()
    segment = torch.repeat_interleave(torch.arange(counts.shape[0], device=crow.device), counts)
    rows = segment % max(n, 1)
    if order is not None:
        block = order_rows(n)
        rows = rows // block * block + order.long()[segment]
    return rows, segment // max(n, 1) * panel + col.long()


def sparse_to_dense(
    values: Tensor, crow: Tensor, col: Tensor, n: int, k: int, panel: int, order: Tensor | None = None
) -> Tensor:
    rows, columns = panel_rows_columns(crow, col, n, panel, order)
    dense = values.new_zeros((n, k, *values.shape[1:]))
    dense[rows, columns] = values
    return dense


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_features: int,
    panel: int,
    order: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    weight = sparse_to_dense(values, crow, col, out_features, x.shape[-1], panel, order)
    y = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return activate(y.to(torch.promote_types(y.dtype, torch.float32)), activation).to(x.dtype)


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> Tensor:
    weight = sparse_to_dense(values, crow, col, grad.shape[-1], in_features, panel, order)
    return (grad.to(weight.dtype) @ weight).to(grad.dtype)


def sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> Tensor:
    n, k = grad.shape[-1], x.shape[-1]
    rows, columns = panel_rows_columns(crow, col, n, panel, order)
    m = math.prod(x.shape[:-1])
    wide = torch.promote_types(grad.dtype, torch.float32)
    dense = grad.reshape(m, n).to(wide).T @ x.reshape(m, k).to(wide)
    return dense[rows, columns].to(grad.dtype)


def int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None,
    panel: int,
    order: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    n, k = weight_scale.shape[0], x.shape[-1]
    weight = sparse_to_dense(values, crow, col, n, -(-k // 4), panel, order).flatten(1)[:, :k]
    return int8_linear(x, weight, weight_scale, bias, activation)
