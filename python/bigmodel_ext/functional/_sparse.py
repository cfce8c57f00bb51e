"""Linear layers with sparse weights."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.backends import sparse_patterns, transposed
from bigmodel_ext.functional._registered import call, ops, require_features

_sparse_linear = ops.sparse_linear.default
_int8_sparse_linear = ops.int8_sparse_linear.default


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    panel: int,
    order: Tensor | None = None,
    activation: str | None = None,
    in_features: int | None = None,
) -> Tensor:
    """A linear layer that stores and multiplies only some of its weights: ``y = x @ W.T + bias``.

    Differentiable in x, in the stored values (only those: the sparsity pattern is fixed) and in bias.

    Args:
        x: [..., K] float32, bfloat16, float16 (or float64, computed by the reference).
        values, crow, col: W [N,K] in the panel-CSR format of ``formats.csr.pack``; values float32 or x's dtype.
        bias: [N], any floating dtype.
        out_features: N.
        panel: columns to a panel, as packed.
        order: int32, if the rows were sorted by ``formats.csr.sort_rows`` (faster).
        activation: applied to y before it is rounded; names and gradient as for :func:`int8_linear`.
        in_features: K. The format knows it only rounded up: given here, an x of another K is refused, which
            otherwise may pass, its surplus ignored and its lack taken for zeros.

    Returns:
        [..., N] in x's dtype; sums are float32.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, or activation is not one of those of :func:`int8_linear`.
    """
    if in_features is not None:
        require_features(x, in_features)
    if activation is None:  # one argument more costs 2 % of a small call
        return call(_sparse_linear, x, values, crow, col, bias, out_features, panel, order)
    return call(_sparse_linear, x, values, crow, col, bias, out_features, panel, order, activation)


def int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None = None,
    *,
    panel: int,
    order: Tensor | None = None,
    activation: str | None = None,
    in_features: int | None = None,
) -> Tensor:
    """:func:`int8_linear` with weights in blocks of 1x4 of which only non-zero ones are stored.

    Args:
        x: [..., K] float32, bfloat16 or float16.
        values, crow, col, row_sum: the int8 weights in the 1x4-block format of ``formats.block.pack``.
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        panel: blocks to a panel, as packed.
        order: int32, if the rows were sorted by ``formats.csr.sort_rows`` (faster).
        activation: applied to y before it is rounded; names and gradient as for :func:`int8_linear`.
        in_features: K. The format knows it only rounded up: given here, an x of another K is refused, which
            otherwise may pass, its surplus ignored and its lack taken for zeros.

    Returns:
        [..., N] in x's dtype; equal to :func:`int8_linear` on the same weights, bit for bit.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, K exceeds 131071, or activation is not one of those of :func:`int8_linear`.
    """
    if in_features is not None:
        require_features(x, in_features)
    if activation is None:
        return call(_int8_sparse_linear, x, values, crow, col, weight_scale, row_sum, bias, panel, order)
    return call(_int8_sparse_linear, x, values, crow, col, weight_scale, row_sum, bias, panel, order, activation)


def forget_transposed(col: Tensor) -> None:
    """Free what backward passes have derived from the pattern with this `col` and kept: the next one makes it anew."""
    transposed.forget(col)


def forget_derived(col: Tensor) -> None:
    """Free all that was derived from the pattern with this `col`; needed after writes that torch does not count."""
    transposed.forget(col)
    sparse_patterns.forget(col)
