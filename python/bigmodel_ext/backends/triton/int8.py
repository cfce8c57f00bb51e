"""Dense int8 matrices and layers."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.backends.triton._rows import bias_of, rows_of


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    from bigmodel_ext.triton_kernels import quantize_rows as kernels

    return kernels.run(x.contiguous(), pad=False)


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    from bigmodel_ext.triton_kernels import int8_mm as kernels

    return kernels.run(a.contiguous(), b.contiguous())


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    input_scale: Tensor | None = None,
) -> Tensor:
    from bigmodel_ext.triton_kernels import int8_linear as kernels

    scales = weight_scale.contiguous()
    out = kernels.run(rows_of(x), weight.contiguous(), scales, bias_of(bias), activation, input_scale)
    return out.view(*x.shape[:-1], out.shape[1])


def int8_weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    from bigmodel_ext.triton_kernels import int8_weight_only_linear as kernels

    out = kernels.run(rows_of(x), weight.contiguous(), weight_scale.contiguous(), bias_of(bias), activation)
    return out.view(*x.shape[:-1], out.shape[1])
