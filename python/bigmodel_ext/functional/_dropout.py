"""Fused dropout, alone and with a normalisation."""

from __future__ import annotations

import operator
import threading

import torch
from torch import Tensor

from bigmodel_ext.functional._registered import call, ops

_fused_dropout = ops.fused_dropout.default
_fused_dropout_norm = ops.fused_dropout_norm.default
_dropout_seed = ops.dropout_seed.default


class _Scratch(threading.local):
    """A thread's reusable place for a seed that nothing needs after the call."""

    def __init__(self) -> None:
        with torch.inference_mode(False):  # an inference tensor could not be written outside that mode
            self.seed = torch.empty((), dtype=torch.int64, device="cpu")


_scratch = _Scratch()


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def _nothing_dropped(p: float) -> tuple[None, float]:
    """No seed, and p = 0, for what must not drop anything; any other p is checked by the op."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be in [0, 1], got {p}")
    return None, 0.0


def _seed(seed: int | None, x: Tensor, kept: bool) -> Tensor:
    """A given seed as a tensor, or a drawn one; `kept`: something needs it after the call."""
    if seed is not None:
        return torch.tensor(operator.index(seed), dtype=torch.int64, device=x.device)
    plain = type(x) is Tensor and x.is_cpu  # a fake tensor's seed, say, must not be drawn into a real one
    return _dropout_seed(x) if kept or not plain else _scratch.seed.random_()


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
        TypeError: a dtype is not one of those above, or seed is a number but no integer.
        ValueError: p or activation is not one of those above, or shapes do not match.
    """
    compiling = torch.compiler.is_compiling()
    if not training or p == 0.0:
        seed, p = _nothing_dropped(p)
    elif not isinstance(seed, Tensor):
        seed = _seed(seed, x, compiling or (torch.is_grad_enabled() and _needs_grad(x, bias, residual)))
    return call(_fused_dropout, x, bias, residual, seed, p, activation)


def fused_dropout_norm(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``h = residual + dropout(act(x + bias))`` and ``y = norm(h) * weight + norm_bias`` in one pass over memory: a
    block of rows is normalised while it is in a cache. The normalisation is over the last dimension:

    - layer (Ba et al., "Layer Normalization", 2016): ``norm(h) = (h - mean(h)) / sqrt(mean((h - mean(h))^2) + eps)``
    - rms (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019): ``norm(h) = h / sqrt(mean(h^2) + eps)``

    The backward pass computes the mask again; it keeps x, h and one or two numbers a row.

    Args:
        x: float32, bfloat16 or float16 (or float64, computed by the reference), [..., features] with features >= 1.
        p, training, bias, activation, residual, seed: as for :func:`fused_dropout`, with the same mask.
        weight, norm_bias: [features], any float dtype; None: 1 and 0.
        norm: "layer" or "rms".
        eps: added under the root, at least 0.

    Returns:
        (y, h), both of x's shape and dtype. h is rounded to that dtype once, and y is computed from the rounded h, in
        float32 (float64 for float64), and rounded once. A network that normalises after the residual goes on with y;
        one that normalises before its blocks also needs h, the next residual. Gradients flow through both.

    Raises:
        TypeError: a dtype is not one of those above.
        ValueError: p, activation, norm or eps is not one of those above, x has no features, or shapes do not match.
    """
    compiling = torch.compiler.is_compiling()
    if not training or p == 0.0:
        seed, p = _nothing_dropped(p)
    elif not isinstance(seed, Tensor):
        graph = torch.is_grad_enabled() and _needs_grad(x, bias, residual, weight, norm_bias)
        seed = _seed(seed, x, compiling or graph)
    y, h, _, _ = call(_fused_dropout_norm, x, bias, residual, seed, weight, norm_bias, p, activation, norm, eps)
    return y, h
