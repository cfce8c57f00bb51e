"""Linear layers with binary-coded weights."""

from __future__ import annotations

from torch import Tensor

from bigmodel_ext.functional._registered import call, ops, require_features

_binary_coded_linear = ops.binary_coded_linear.default


def binary_coded_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    group_size: int,
    activation: str = "none",
    in_features: int | None = None,
) -> Tensor:
    """A linear layer whose weight is a sum of scaled sign planes, on activations quantized per row on the fly:

    ``y[m,n] = act(z[m,n] * scale[m] + bias[n])``, ``z[m,n] = sum_{g,b} alpha[n,g,b] * sum_{k in g} s[n,b,k] * q[m,k]``
    with ``q, scale`` from :func:`quantize_rows`. The inner sums are exact integers. z is float32: each product with an
    alpha rounds once, and the products are added one after the other, each sum rounded, first over the planes b of
    group 0, then of group 1, and so on; every instruction set gives the same bits (but for those of the activation).

    Differentiable in x, bias and scales (rounding of x counts as the identity): with W the weight, ``dx = dy W`` and
    ``dalpha[n,g,b] = sum_{k in g} (dy^T (q scale))[n,k] s[n,b,k]``. Backward passes decode the weight to float32.

    Args:
        x: [..., K] float32, bfloat16 or float16, K at most 131071.
        packed: uint8 [ceil(N/64), words, bits, 64, 2], the signs as ``formats.binary_coded.to_panels`` lays them out.
        scales: float16 [ceil(N/64), G, bits, 64], alpha as ``formats.binary_coded.scales_to_panels`` lays it out.
        bias: [N], any floating dtype.
        out_features: N.
        group_size: inputs that share an alpha, a multiple of 8; G = ceil(K/group_size).
        activation: as in :func:`int8_linear`.
        in_features: K. The packed signs know it only rounded up: given here, an x of another K is refused.

    Returns:
        [..., N] in x's dtype. A row with NaN or an infinity yields NaN.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, bits is not in [1, 8], group_size is no multiple of 8, K exceeds 131071, or
            activation is unknown.

    Source: Xu et al. 2018 (the code); Park et al., "LUT-GEMM" (2022), for products with such weights by look-up.
    """
    if in_features is not None:
        require_features(x, in_features)
    return call(_binary_coded_linear, x, packed, scales, bias, out_features, group_size, activation)
