"""The ops as functions, with defaults and argument conversion. See ``torch.ops.bigmodel_ext`` for the raw ops."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from bigmodel_ext import _autograd, _dispatch, _ops  # noqa: F401  (registers the ops)
from bigmodel_ext._ops import ACTIVATIONS as ACTIVATIONS
from bigmodel_ext._ops import INT8_MAX_K as INT8_MAX_K
from bigmodel_ext.backends import cpu, cuda  # noqa: F401

_int8_linear = torch.ops.bigmodel_ext.int8_linear.default
_int8_mm = torch.ops.bigmodel_ext.int8_mm.default
_quantize_rows = torch.ops.bigmodel_ext.quantize_rows.default
_sparse_linear = torch.ops.bigmodel_ext.sparse_linear.default
_int8_sparse_linear = torch.ops.bigmodel_ext.int8_sparse_linear.default
_fused_dropout = torch.ops.bigmodel_ext.fused_dropout.default
_dropout_seed = torch.ops.bigmodel_ext.dropout_seed.default

# Ops are called through `_op`, which is the same without a Python frame (0.25 us of about 4), but for the compiler,
# which must see the op itself.
_compiling = torch.compiler.is_dynamo_compiling


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
    op = _quantize_rows if _compiling() else _quantize_rows._op
    return op(x)


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
    op = _int8_mm if _compiling() else _int8_mm._op
    return op(a, b)


def int8_linear(x: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer with int8 weights and activations quantized per row on the fly:

    ``y[m,n] = (sum_k q[m,k] * weight_q[n,k]) * scale[m] * weight_scale[n] + bias[n]``, with ``q, scale`` from
    :func:`quantize_rows`; the sum is exact in int32, the rest is float32, rounded once to x's dtype.

    Differentiable in x and bias (rounding counts as the identity: ``dx = (dy * weight_scale) @ weight_q``).

    Args:
        x: [..., K] float32, bfloat16 or float16.
        weight_q: int8 [N,K], or the same weights packed by ``formats.int8.pack`` (faster: no packing in the call).
        weight_scale: float32 [N].
        bias: [N], any floating dtype.

    Returns:
        [..., N] in x's dtype.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, or K exceeds 131071.
    """
    op = _int8_linear if _compiling() else _int8_linear._op
    return op(x, weight_q, weight_scale, bias)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    panel: int,
) -> Tensor:
    """A linear layer that stores and multiplies only some of its weights: ``y = x @ W.T + bias``.

    Differentiable in x, in the stored values (only those: the sparsity pattern is fixed) and in bias.

    Args:
        x: [..., K] float32, bfloat16, float16 (or float64, computed by the reference).
        values, crow, col: W [N,K] in the panel-CSR format of ``formats.csr.pack``; values float32 or x's dtype.
        bias: [N], any floating dtype.
        out_features: N.
        panel: columns to a panel, as packed.

    Returns:
        [..., N] in x's dtype; sums are float32.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match.
    """
    op = _sparse_linear if _compiling() else _sparse_linear._op
    return op(x, values, crow, col, bias, out_features, panel)


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
) -> Tensor:
    """:func:`int8_linear` with weights in blocks of 1x4 of which only non-zero ones are stored.

    Args:
        x: [..., K] float32, bfloat16 or float16.
        values, crow, col, row_sum: the int8 weights in the 1x4-block format of ``formats.block.pack``.
        weight_scale: float32 [N].
        bias: [N], any floating dtype.
        panel: blocks to a panel, as packed.

    Returns:
        [..., N] in x's dtype; equal to :func:`int8_linear` on the same weights, bit for bit.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: shapes do not match, or K exceeds 131071.
    """
    op = _int8_sparse_linear if _compiling() else _int8_sparse_linear._op
    return op(x, values, crow, col, weight_scale, row_sum, bias, panel)


class _Scratch(threading.local):
    """A thread's reusable place for a seed that nothing needs after the call."""

    def __init__(self) -> None:
        with torch.inference_mode(False):  # an inference tensor could not be written outside that mode
            self.seed = torch.empty((), dtype=torch.int64, device="cpu")


_scratch = _Scratch()


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def fused_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """``residual + dropout(act(x + bias))`` in one pass over memory, with no mask stored.

    ``dropout(v)[i] = v[i] * 65536 / (65536 - t)`` where element i is kept and 0 elsewhere, ``t = round(65536 p)``.
    Whether i is kept depends on (seed, i) only: 16 bits of Philox4x32-10 (Salmon et al., SC 2011) with the seed as key
    and i // 8 as counter, compared with t. So the mask is the same in eager and compiled code, on any device, for any
    number of threads, and the backward pass computes it again instead of loading it.

    Args:
        x: float32, bfloat16 or float16 (or float64, computed by the reference), any shape.
        p: probability of dropping an element, in [0, 1], in steps of 1/65536.
        training: if False nothing is dropped or scaled.
        bias: [x.shape[-1]].
        activation: none, relu, leaky_relu (slope 0.01), gelu (exact), silu, sigmoid, tanh or softplus (beta 1).
        residual: x's shape and dtype.
        seed: fixes the mask; by default it is drawn from torch's generator, so ``torch.manual_seed`` governs it.

    Returns:
        x's shape and dtype. Computed in float32 (float64 for float64) and rounded once. A dropped element is exactly
        the residual (or 0), even where the activation is NaN or infinite.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: p or activation is not one of those above, or shapes do not match.
    """
    compiling = torch.compiler.is_compiling()
    if not training or p == 0.0:
        if not 0.0 <= p <= 1.0:  # what is passed on is checked there
            raise ValueError(f"p must be in [0, 1], got {p}")
        seed, p = None, 0.0
    elif seed is None:
        plain = type(x) is Tensor and x.is_cpu  # a fake tensor's seed, say, must not be drawn into a real one
        if compiling or not plain or (torch.is_grad_enabled() and _needs_grad(x, bias, residual)):
            seed = _dropout_seed(x)
        else:
            seed = _scratch.seed.random_()
    elif isinstance(seed, int):
        seed = torch.tensor(seed, dtype=torch.int64, device=x.device)
    op = _fused_dropout if compiling else _fused_dropout._op
    return op(x, bias, residual, seed, p, activation)
