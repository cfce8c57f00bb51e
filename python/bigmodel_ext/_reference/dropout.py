"""Philox and fused dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_ROUNDS = 10


def philox_4x32(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on int64 tensors that hold
    unsigned 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 32x32-bit product wraps in int64, which leaves its bits right; the mask undoes the arithmetic shift's sign.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        hi0, lo0 = (p0 >> 32) & _MASK32, p0 & _MASK32
        hi1, lo1 = (p1 >> 32) & _MASK32, p1 & _MASK32
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1, c2, c3]


def dropout_threshold(p: float) -> int:
    """Of 65536 equally likely 16-bit draws, how many drop the element."""
    return math.floor(p * 65536.0 + 0.5)


def dropout_keep(numel: int, seed: int, p: float, device: torch.device | str = "cpu") -> Tensor:
    """bool [numel]. Element i uses 16 bits of Philox4x32-10 with key = seed (low, high word) and counter
    (i // 8 low, i // 8 high, 0, 0): word (i % 8) // 2, its low half for even i, its high half for odd i; it is kept if
    they are >= round(65536 p)."""
    blocks = torch.arange(-(-numel // 8), device=device)
    zero = torch.zeros_like(blocks)
    words = philox_4x32([blocks & _MASK32, blocks >> 32, zero, zero], (seed & _MASK32, (seed >> 32) & _MASK32))
    halves = torch.stack([h for w in words for h in (w & 0xFFFF, w >> 16)], dim=-1)
    return halves.reshape(-1)[:numel] >= dropout_threshold(p)


def dropout_scale(p: float) -> float:
    """1 / P(kept), with the probability that the 16-bit threshold really gives; 0 when nothing is kept."""
    kept = 65536 - dropout_threshold(p)
    return 65536.0 / kept if kept else 0.0


def dropout_seed(x: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=x.device).random_()


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    owner = torch if activation in ("relu", "sigmoid", "tanh") else F
    return getattr(owner, activation)(x)


def activation_slope(z: Tensor, activation: str) -> Tensor:
    """The derivative, by torch's own backward ops: they need no autograd, which is off inside an op."""
    one = torch.ones_like(z)
    aten: Any = torch.ops.aten
    slopes: dict[str, Callable[[], Any]] = {
        "none": lambda: one,
        "relu": lambda: aten.threshold_backward(one, z, 0),
        "leaky_relu": lambda: aten.leaky_relu_backward(one, z, 0.01, False),
        "gelu": lambda: aten.gelu_backward(one, z),
        "silu": lambda: aten.silu_backward(one, z),
        "sigmoid": lambda: aten.sigmoid_backward(one, z.sigmoid()),
        "tanh": lambda: aten.tanh_backward(one, z.tanh()),
        "softplus": lambda: aten.softplus_backward(one, z, 1, 20),
    }
    return cast(Tensor, slopes[activation]())


def _keep(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    if seed is None:
        return torch.ones_like(x, dtype=torch.bool)
    return dropout_keep(x.numel(), int(seed), p, x.device).reshape(x.shape)


def fused_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = activate(wide if bias is None else wide + bias, activation)
    y = torch.where(_keep(x, seed, p), y * dropout_scale(p), 0.0)
    return (y if residual is None else y + residual).to(x.dtype)


def fused_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, activation: str
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    slope = activation_slope(x.to(wide) if bias is None else (x.to(wide) + bias).to(wide), activation)
    return torch.where(_keep(x, seed, p), grad.to(wide) * slope * dropout_scale(p), 0.0).to(x.dtype)


def fused_dropout_backward_bias(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor | None, p: float, activation: str
) -> tuple[Tensor, Tensor]:
    dx = fused_dropout_backward(grad, x, bias, seed, p, activation)
    return dx, _sum_of_rows(dx)


def _sum_of_rows(x: Tensor) -> Tensor:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def fused_dropout_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    p: float,
    activation: str,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h = fused_dropout(x, bias, residual, seed, p, activation)
    wide = h.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean(-1, keepdim=True) if norm == "layer" else wide.new_zeros(())
    rstd = ((wide - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    y = (wide - mean) * rstd
    y = y if weight is None else y * weight.to(wide.dtype)
    y = y if norm_bias is None else y + norm_bias.to(wide.dtype)
    return y.to(x.dtype), h, (mean if norm == "layer" else wide.new_empty(0)).reshape(-1), rstd.reshape(-1)


def fused_dropout_norm_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    weight: Tensor | None,
    p: float,
    activation: str,
    norm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    dy, rstd = grad_y.to(wide), rstd.reshape(*x.shape[:-1], 1)
    normal = h.to(wide) * rstd if norm == "rms" else (h.to(wide) - mean.reshape(*x.shape[:-1], 1)) * rstd
    g = dy if weight is None else dy * weight.to(wide)
    dh = g - normal * (g * normal).mean(-1, keepdim=True)
    dh = (dh if norm == "rms" else dh - g.mean(-1, keepdim=True)) * rstd
    dh = (dh if grad_h is None else dh + grad_h.to(wide)).to(x.dtype)
    dx = fused_dropout_backward(dh, x, bias, seed, p, activation)
    sums = [_sum_of_rows(dy * normal), _sum_of_rows(dy)] + ([] if bias is None else [_sum_of_rows(dx)])
    return dx, dh, torch.stack(sums)
