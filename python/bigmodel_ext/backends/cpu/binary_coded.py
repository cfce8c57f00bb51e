"""Binary-coded linear layers."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext import _native
from bigmodel_ext.backends.cpu._rows import output_rows


def binary_coded_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    out = output_rows(x, out_features)
    _native.binary_coded_linear(x, packed, scales, bias, out, group_size, activation)
    return out
