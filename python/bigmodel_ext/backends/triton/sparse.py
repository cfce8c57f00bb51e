"""Weights in panels of compressed sparse rows."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.backends.triton._rows import bias_of, rows_of


def _order(order: Tensor | None) -> Tensor | None:
    return None if order is None else order.contiguous()


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
    from bigmodel_ext.triton_kernels import sparse_linear as kernels

    weight = (values.contiguous(), crow.contiguous(), col.contiguous(), _order(order))
    out = kernels.forward(rows_of(x), *weight, bias_of(bias), out_features, panel, activation)
    return out.view(*x.shape[:-1], out_features)


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int, order: Tensor | None = None
) -> Tensor:
    from bigmodel_ext.triton_kernels import sparse_linear as kernels

    weight = (values.contiguous(), crow.contiguous(), col.contiguous(), _order(order))
    return kernels.grad_input(rows_of(grad), *weight, in_features, panel).view(*grad.shape[:-1], in_features)


def sparse_linear_grad_values(
    grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int, order: Tensor | None = None
) -> Tensor:
    from bigmodel_ext.triton_kernels import sparse_linear as kernels

    return kernels.grad_values(rows_of(grad), rows_of(x), crow.contiguous(), col.contiguous(), _order(order), panel)


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
    from bigmodel_ext.triton_kernels import int8_sparse_linear as kernels

    weight = (values.contiguous(), crow.contiguous(), col.contiguous(), _order(order), weight_scale.contiguous())
    out = kernels.run(rows_of(x), *weight, bias_of(bias), panel, activation)
    return out.view(*x.shape[:-1], out.shape[1])
