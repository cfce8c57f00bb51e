"""Row quantization and int8 products."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.functional._registered import call, ops, require_features

_quantize_rows = ops.quantize_rows.default
_int8_mm = ops.int8_mm.default
_int8_linear = ops.int8_linear.default
_int8_weight_only_linear = ops.int8_weight_only_linear.default


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 quantization of each row: ``scale[m] = max_k |x[m,k]| / 127``,
    ``q[m,k] = round_half_even(x[m,k] * 127 / max_k |x[m,k]|)``.

    Args:
        x: [M,K] float32, bfloat16 or float16.

    Returns:
        q int8 [M,K] in [-127, 127], and scale float32 [M], with ``x ~ q * scale[:, None]``. A row that holds NaN or an
        infinity gets q = 0 and scale = NaN; a row whose largest magnitude is below 2^-119 gets q = 0 and scale = 0.

    Raises:
        TypeError: x has another dtype.
        ValueError: x is not 2-d.
    """
    return call(_quantize_rows, x)


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` of int8 matrices, exact in int32 over the full range [-128, 127].

    Args:
        a: int8 [M,K].
        b: int8 [N,K], K at most 131071 (beyond it a sum may leave int32).

    Returns:
        int32 [M,N], the same on every device and instruction set.

    Raises:
        TypeError: an argument is not int8.
        ValueError: shapes do not match, or K is too large.
    """
    return call(_int8_mm, a, b)


def int8_linear(
    x: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    in_features: int | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """A linear layer with int8 weights and activations quantized per row on the fly:

    ``y[m,n] = act((sum_k q[m,k] * weight_q[n,k]) * scale[m] * weight_scale[n] + bias[n])``, with ``q, scale`` from
    :func:`quantize_rows`; the sum is exact in int32, the rest is float32, rounded once to x's dtype. The activation is
    computed while the results are in the first-level cache, with the accuracy it has in :func:`fused_dropout`.

    With an `input_scale` s (static quantization) nothing is looked for in x: ``scale[m] = s`` and
    ``q = round_half_even(min(max(x * (1 / s), -127), 127))``. A row of x with NaN or an infinity still yields NaN;
    s below 2^-119 counts as 0, where all of q is 0; a negative, infinite or NaN s makes everything NaN.

    Differentiable in x and bias (rounding counts as the identity: ``dx = (dy * weight_scale) @ weight_q``, and 0
    where an `input_scale` lets x saturate). With an
    activation the backward pass keeps x, computes the product once more for the activation's slope, and can't be
    differentiated in turn.

    Args:
        x: [..., K] float32, bfloat16 or float16.
        weight_q: int8 [N,K], or the same weights packed by ``formats.int8.pack`` (faster: no packing in the call).
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        activation: relu, leaky_relu (slope 0.01), gelu (exact), silu, sigmoid, tanh or softplus (beta 1); None or
            "none": the identity.
        in_features: K. A packed weight knows it only rounded up: given here, an x of another K is refused, which
            otherwise may pass, its surplus ignored and its lack taken for zeros.
        input_scale: float32, 0-d; None: each row's own.

    Returns:
        [..., N] in x's dtype.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, K exceeds 131071, or activation is not one of those above.
    """
    if in_features is not None:
        require_features(x, in_features)
    if input_scale is not None:
        return call(_int8_linear, x, weight_q, weight_scale, bias, activation or "none", input_scale)
    if activation is None:  # one argument more costs 2 % of a small call
        return call(_int8_linear, x, weight_q, weight_scale, bias)
    return call(_int8_linear, x, weight_q, weight_scale, bias, activation)


def int8_weight_only_linear(
    x: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    in_features: int | None = None,
) -> Tensor:
    """A linear layer with int8 weights and float activations:

    ``y[m,n] = act((sum_k x[m,k] * weight_q[n,k]) * weight_scale[n] + bias[n])``, computed in float32 and rounded once
    to x's dtype. Weights are read as bytes and converted in registers.

    Differentiable in x and bias (``dx = (dy * weight_scale) @ weight_q``).

    Args:
        x: [..., K] float32, bfloat16 or float16.
        weight_q: int8, packed by ``formats.int8.pack``.
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        activation, in_features: as in :func:`int8_linear`.

    Returns:
        [..., N] in x's dtype.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, or activation is not one that exists.
    """
    if in_features is not None:
        require_features(x, in_features)
    return call(_int8_weight_only_linear, x, weight_q, weight_scale, bias, activation or "none")
