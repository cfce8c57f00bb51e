"""Convolutions with compressed weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bigmodel_ext.functional._registered import call, ops

_sparse_conv2d = ops.sparse_conv2d.default
_int8_conv2d = ops.int8_conv2d.default


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _padding(
    padding: int | Sequence[int] | str, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """(top, bottom, left, right)."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding 'same' needs stride 1, got {list(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        return total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2
    if isinstance(padding, str):
        raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
    numbers = _pair(padding)
    if len(numbers) not in (2, 4):
        raise ValueError(
            f"padding must be a number, (height, width) or (top, bottom, left, right), got {list(numbers)}"
        )
    return numbers if len(numbers) == 4 else (numbers[0], numbers[0], numbers[1], numbers[1])


def _require_channels(x: Tensor, in_channels: int | None) -> None:
    if in_channels is not None and (x.dim() not in (3, 4) or x.shape[-3] != in_channels):
        raise ValueError(f"x must be [B,C,H,W] or [C,H,W] with C = {in_channels} channels, got shape {list(x.shape)}")


def int8_conv2d(
    x: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    kernel_size: Sequence[int] | None = None,
    in_channels: int | None = None,
) -> Tensor:
    """A 2-d convolution with int8 weights and activations quantized per image on the fly:

    ``y[b,n,p] = (sum_k q[b,p,k] * weight_q[n,k]) * scale[b] * weight_scale[n] + bias[n]``, where k runs over the kernel
    window and the group's channels, ``scale[b] = max |x[b]| / 127`` and ``q = round_half_even(x * 127 / max |x[b]|)``;
    the sum is exact in int32, padding adds exactly 0, the rest is float32, rounded once to x's dtype.

    One scale for a whole image: each pixel is quantized once, though kh * kw windows share it, and the result depends
    on nothing but the image. An image that holds NaN or an infinity gives an image of NaN; one whose largest magnitude
    is below 2^-119 counts as zero.

    Differentiable in x and bias (rounding counts as the identity: dx is a convolution's with weight_q * weight_scale).

    Args:
        x: [B,C,H,W] or [C,H,W] float32, bfloat16 or float16. Channels last gives channels last and is faster; other
            strides are copied.
        weight_q: int8 [N,C/groups,kh,kw], or the same packed by ``formats.int8_conv.pack`` (faster: not packed in the
            call; then with kernel_size).
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        stride, dilation: a number, or (height, width).
        padding: a number, (height, width), (top, bottom, left, right), "same" (stride 1 only) or "valid".
        kernel_size: (kh, kw) of a packed weight.
        in_channels: C. A packed weight knows K only rounded up: given here, an x of other channels is refused, which
            otherwise may pass.

    Returns:
        [B,N,OH,OW] (or [N,OH,OW]) in x's dtype and memory format.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes or numbers do not match, or C / groups * kh * kw exceeds 131071.
    """
    _require_channels(x, in_channels)
    if weight_q.dim() == 4:
        if kernel_size is not None and tuple(kernel_size) != tuple(weight_q.shape[2:]):
            raise ValueError(f"kernel_size must be the weight's, {list(weight_q.shape[2:])}, got {list(kernel_size)}")
        kernel_size, weight_q = tuple(weight_q.shape[2:]), weight_q.permute(0, 2, 3, 1).flatten(1)
    elif kernel_size is None:
        raise ValueError("kernel_size must be given with a packed weight")
    stride, dilation = _pair(stride), _pair(dilation)
    window = (kernel_size, stride, _padding(padding, kernel_size, stride, dilation), dilation, groups)
    if x.dim() == 3:
        return call(_int8_conv2d, x.unsqueeze(0), weight_q, weight_scale, bias, *window).squeeze(0)
    return call(_int8_conv2d, x, weight_q, weight_scale, bias, *window)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    kernel_size: Sequence[int],
    out_channels: int,
    panel: int,
    in_channels: int | None = None,
) -> Tensor:
    """A 2-d convolution that stores and multiplies only some of its weights: ``F.conv2d(x, W, bias, ...)``.

    Differentiable in x, in the stored values (only those: the sparsity pattern is fixed) and in bias; the backward pass
    is a dense convolution's and gains nothing.

    Args:
        x: [B,C,H,W] or [C,H,W] float32, bfloat16, float16 (or float64, computed by the reference). Channels last gives
            channels last; other strides are copied.
        values, crow, col: W.flatten(1) [N, C/groups * kh * kw] in the panel-CSR format of ``formats.csr.pack``; values
            float32 or x's dtype.
        bias: [N], any floating dtype.
        stride, dilation, padding: as for :func:`int8_conv2d`.
        kernel_size: (kh, kw).
        out_channels: N.
        panel: columns to a panel, as packed.
        in_channels: C. The format knows K only rounded up: given here, an x of other channels is refused, which
            otherwise may pass.

    Returns:
        [B,N,OH,OW] (or [N,OH,OW]) in x's dtype and memory format; sums are float32.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes or numbers do not match.
    """
    _require_channels(x, in_channels)
    stride, dilation = _pair(stride), _pair(dilation)
    window = (kernel_size, stride, _padding(padding, kernel_size, stride, dilation), dilation, groups)
    if x.dim() == 3:
        return call(_sparse_conv2d, x.unsqueeze(0), values, crow, col, bias, *window, out_channels, panel).squeeze(0)
    return call(_sparse_conv2d, x, values, crow, col, bias, *window, out_channels, panel)
