"""Weights in square blocks, and with two of every four."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.backends.triton._rows import bias_of, rows_of


def block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    from bigmodel_ext.triton_kernels import block_sparse_linear as kernels

    weight = (values.contiguous(), crow.contiguous(), col.contiguous())
    return kernels.forward(rows_of(x), *weight, bias_of(bias), out_features).view(*x.shape[:-1], out_features)


def block_sparse_linear_grad_input(grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int) -> Tensor:
    from bigmodel_ext.triton_kernels import block_sparse_linear as kernels

    weight = (values.contiguous(), crow.contiguous(), col.contiguous())
    return kernels.grad_input(rows_of(grad), *weight, in_features).view(*grad.shape[:-1], in_features)


def block_sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int) -> Tensor:
    from bigmodel_ext.triton_kernels import block_sparse_linear as kernels

    return kernels.grad_values(rows_of(grad), rows_of(x), crow.contiguous(), col.contiguous(), blocksize)


def semi_sparse_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    from bigmodel_ext.triton_kernels import semi_sparse_linear as kernels

    weight = (values.contiguous(), index.contiguous())
    return kernels.forward(rows_of(x), *weight, bias_of(bias), out_features).view(*x.shape[:-1], out_features)


def semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> Tensor:
    from bigmodel_ext.triton_kernels import semi_sparse_linear as kernels

    weight = (values.contiguous(), index.contiguous())
    return kernels.grad_input(rows_of(grad), *weight, in_features).view(*grad.shape[:-1], in_features)


def semi_sparse_linear_grad_values(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    from bigmodel_ext.triton_kernels import semi_sparse_linear as kernels

    return kernels.grad_values(rows_of(grad), rows_of(x), index.contiguous())
