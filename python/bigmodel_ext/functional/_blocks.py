"""Linear layers with weights in square blocks, and with two of every four."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.functional._registered import call, ops, require_features

_block_sparse_linear = ops.block_sparse_linear.default
_semi_sparse_linear = ops.semi_sparse_linear.default
_int8_semi_sparse_linear = ops.int8_semi_sparse_linear.default


def block_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    in_features: int | None = None,
) -> Tensor:
    """A linear layer that stores and multiplies only some square blocks of its weights: ``y = x @ W.T + bias``.

    Differentiable in x, in the stored values (only those: the pattern is fixed) and in bias, any number of times.

    Args:
        x: [..., K] float32, bfloat16, float16 (or float64, computed by the reference).
        values, crow, col: W [N,K] in the format of ``formats.block_sparse.pack``, in blocks of 16, 32 or 64; values
            float32 or x's dtype.
        bias: [N], any floating dtype.
        out_features: N.
        in_features: K. The format knows it only rounded up: given here, an x of another K is refused, which
            otherwise may pass, its surplus ignored and its lack taken for zeros.

    Returns:
        [..., N] in x's dtype; sums are float32.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, or an index lies outside.
    """
    if in_features is not None:
        require_features(x, in_features)
    return call(_block_sparse_linear, x, values, crow, col, bias, out_features)


def semi_sparse_linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    in_features: int | None = None,
) -> Tensor:
    """A linear layer that stores two of every four neighbouring weights of a row: ``y = x @ W.T + bias``.

    Differentiable in x, in the stored values (only those: the pattern is fixed) and in bias, any number of times.

    Args:
        x: [..., K] float32, bfloat16, float16 (or float64, computed by the reference).
        values, index: W [N,K] in the format of ``formats.two_four.pack``; values float32 or x's dtype.
        bias: [N], any floating dtype.
        out_features: N.
        in_features: K. The format knows it only rounded up: given here, an x of another K is refused, which
            otherwise may pass, its surplus ignored and its lack taken for zeros.

    Returns:
        [..., N] in x's dtype; sums are float32.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match.
    """
    if in_features is not None:
        require_features(x, in_features)
    return call(_semi_sparse_linear, x, values, index, bias, out_features)


def int8_semi_sparse_linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    in_features: int | None = None,
) -> Tensor:
    """:func:`int8_linear` with two of every four neighbouring weights of a row stored. NVIDIA GPUs multiply these at
    twice the dense int8 rate; the CPU spreads them out in each call, which is no faster than :func:`int8_linear`.

    Args:
        x: [..., K] float32, bfloat16 or float16.
        values, index: the int8 weights in the 2:4 format of ``formats.two_four.pack_int8``. Positions that do not
            increase within a group give unspecified results.
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        activation: applied to y before it is rounded; names and gradient as for :func:`int8_linear`.
        in_features: K. The format knows it only rounded up: given here, an x of another K is refused.

    Returns:
        [..., N] in x's dtype; equal to :func:`int8_linear` on the same weights, bit for bit.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, K exceeds 131071, or activation is not one of those of :func:`int8_linear`.
    """
    if in_features is not None:
        require_features(x, in_features)
    return call(_int8_semi_sparse_linear, x, values, index, weight_scale, bias, activation or "none")
