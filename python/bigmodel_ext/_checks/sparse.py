"""Weights in panels of compressed sparse rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._checks._common import (
    FLOATS,
    require,
    require_activation,
    require_bias,
    require_dtype,
    require_features,
    require_pair,
    require_shape,
    require_values,
)
from bigmodel_ext._checks.int8 import require_k


def require_panels(values: Tensor, crow: Tensor, col: Tensor, n: int, k: int, panel: int, order: Tensor | None) -> None:
    require_dtype("crow", crow, torch.int32)
    require_dtype("col", col, torch.uint8)
    require(1 <= panel <= 256, lambda: f"panel must be in [1, 256], got {panel}")
    require(n >= 0, lambda: f"out_features must not be negative, got {n}")
    require_shape("crow", crow, -(-k // panel) * n + 1)
    require_shape("col", col, values.shape[0])
    if order is not None:
        require_dtype("order", order, torch.int32)
        require_shape("order", order, -(-k // panel) * n)


def check_pack_panel_csr(weight: Tensor, mask: Tensor | None, panel: int, sort: bool) -> None:
    require_dtype("weight", weight, *FLOATS, torch.float64, torch.int32)
    require(weight.dim() == 2, lambda: f"weight must be [N,K], got shape {list(weight.shape)}")
    require(1 <= panel <= 256, lambda: f"panel must be in [1, 256], got {panel}")
    require(
        mask is None or (mask.shape == weight.shape and mask.dtype == torch.bool),
        lambda: f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}",  # type: ignore[union-attr]
    )


def check_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_features: int,
    panel: int,
    order: Tensor | None = None,
    activation: str = "none",
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS, torch.float64)
    require_values(values, x)
    require_features(x)
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    require_panels(values, crow, col, out_features, x.shape[-1], panel, order)
    require_bias(bias, out_features)


def check_sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> None:
    require_dtype("grad", grad, *FLOATS, torch.float64)
    require_values(values, grad)
    require_features(grad)
    require(in_features >= 0, lambda: f"in_features must not be negative, got {in_features}")
    require(values.dim() == 1, lambda: f"values must be [nnz], got shape {list(values.shape)}")
    require_panels(values, crow, col, grad.shape[-1], in_features, panel, order)


def check_sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> None:
    require_pair(grad, x)
    require_panels(col, crow, col, grad.shape[-1], x.shape[-1], panel, order)


def check_int8_sparse_linear(
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
) -> None:
    require_activation(activation)
    require_dtype("x", x, *FLOATS)
    require_dtype("values", values, torch.int8)
    require_dtype("weight_scale", weight_scale, torch.float32)
    require_dtype("row_sum", row_sum, torch.int32)
    require_features(x)
    require(
        values.dim() == 2 and values.shape[1] == 4, lambda: f"values must be [blocks,4], got shape {list(values.shape)}"
    )
    require(weight_scale.dim() == 1, lambda: f"weight_scale must be [N], got shape {list(weight_scale.shape)}")
    n, k = weight_scale.shape[0], x.shape[-1]
    require_shape("row_sum", row_sum, n)
    require_panels(values, crow, col, n, -(-k // 4), panel, order)
    require_bias(bias, n)
    require_k(k)
