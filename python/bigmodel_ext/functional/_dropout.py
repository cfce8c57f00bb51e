"""Fused dropout."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from bigmodel_ext.functional._registered import call, ops

_fused_dropout = ops.fused_dropout.default
_dropout_seed = ops.dropout_seed.default


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
    return call(_fused_dropout, x, bias, residual, seed, p, activation)
