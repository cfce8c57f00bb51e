"""Binary-coded linear layers."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.backends.triton._rows import bias_of, rows_of


def binary_coded_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    from bigmodel_ext.triton_kernels import binary_coded_linear as kernels

    if packed.storage_offset() % 2:  # the kernel reads two bytes at a time
        packed = packed.clone()
    weight = (packed.contiguous(), scales.contiguous(), bias_of(bias))
    out = kernels.run(rows_of(x), *weight, out_features, group_size, activation)
    return out.view(*x.shape[:-1], out_features)
