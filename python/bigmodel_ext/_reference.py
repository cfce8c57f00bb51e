"""Every op in plain PyTorch: what runs where no kernel does, and what kernels are tested against. Clear, not fast."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_QUANTIZABLE = 2.0**-119


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    absmax = x.abs().amax(dim=1) if x.shape[1] else x.new_zeros(x.shape[0])
    finite = absmax.isfinite()  # amax propagates NaN
    usable = finite & (absmax >= SMALLEST_QUANTIZABLE)
    # A division, where `127.0 / absmax` would multiply by the rounded reciprocal.
    inverse = torch.where(usable, torch.full_like(absmax, 127.0).div(absmax), 0.0)
    q = torch.where(usable[:, None], x, 0.0).mul(inverse[:, None]).round().to(torch.int8)
    scale = torch.where(usable, absmax / 127.0, torch.where(finite, 0.0, math.nan))
    return q, scale


def int8_mm(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().T).to(torch.int32)  # every partial sum is below 2^53: exact


def unpack_int8(packed: Tensor, n: int, k: int) -> Tensor:
    """[ceil(N/64), ceil(K/4)+1, 64, 4] -> [N,K]; slab 0 holds the column sums (see formats.int8)."""
    panels, slabs, columns, group = packed.shape
    return packed[:, 1:].permute(0, 2, 1, 3).reshape(panels * columns, (slabs - 1) * group)[:n, :k]


def _scaled(acc: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y = acc.float() * x_scale[:, None] * weight_scale
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).reshape(*x.shape[:-1], weight_scale.shape[0])


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    n, k = weight_scale.shape[0], x.shape[-1]
    if weight.dim() == 4:
        weight = unpack_int8(weight, n, k)
    q, x_scale = quantize_rows(x.reshape(math.prod(x.shape[:-1]), k))
    return _scaled(int8_mm(q, weight), x_scale, weight_scale, bias, x)


def panel_rows_columns(crow: Tensor, col: Tensor, n: int, panel: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every stored entry of a panel-CSR matrix (see formats.csr)."""
    counts = crow.diff().long()
    segment = torch.repeat_interleave(torch.arange(counts.shape[0], device=crow.device), counts)
    return segment % max(n, 1), segment // max(n, 1) * panel + col.long()


def sparse_to_dense(values: Tensor, crow: Tensor, col: Tensor, n: int, k: int, panel: int) -> Tensor:
    rows, columns = panel_rows_columns(crow, col, n, panel)
    dense = values.new_zeros((n, k, *values.shape[1:]))
    dense[rows, columns] = values
    return dense


def sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int, panel: int
) -> Tensor:
    weight = sparse_to_dense(values, crow, col, out_features, x.shape[-1], panel)
    y = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return y.to(x.dtype)


def sparse_linear_grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int, panel: int
) -> Tensor:
    weight = sparse_to_dense(values, crow, col, grad.shape[-1], in_features, panel)
    return (grad.to(weight.dtype) @ weight).to(grad.dtype)


def sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, panel: int) -> Tensor:
    n, k = grad.shape[-1], x.shape[-1]
    rows, columns = panel_rows_columns(crow, col, n, panel)
    m = math.prod(x.shape[:-1])
    wide = torch.promote_types(grad.dtype, torch.float32)
    dense = grad.reshape(m, n).to(wide).T @ x.reshape(m, k).to(wide)
    return dense[rows, columns].to(grad.dtype)


def int8_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    weight_scale: Tensor,
    row_sum: Tensor,
    bias: Tensor | None,
    panel: int,
) -> Tensor:
    n, k = weight_scale.shape[0], x.shape[-1]
    weight = sparse_to_dense(values, crow, col, n, -(-k // 4), panel).flatten(1)[:, :k]
    return int8_linear(x, weight, weight_scale, bias)


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
    with torch.enable_grad():
        z = (x.to(wide) if bias is None else x.to(wide) + bias).detach().requires_grad_()
        (slope,) = torch.autograd.grad(activate(z, activation).sum(), z)
    return torch.where(_keep(x, seed, p), grad.to(wide) * slope * dropout_scale(p), 0.0).to(x.dtype)
