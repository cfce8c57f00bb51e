"""Symmetric int8 quantization of each row, with the row's own scale or a given one (see csrc/cpu/quantize_rows.h)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import LARGEST, SMALLEST_QUANTIZABLE, whole, widen
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2

ALIGNMENT = 16  # bytes: rows of q begin at multiples of it, so that products read them in vectors


@triton.jit
def load_rows(x, row, rows, k, K):
    mask = (row < rows)[:, None] & (k < K)[None, :]
    return widen(tl.load(x + row.to(tl.int64)[:, None] * K + k[None, :], mask, 0.0))


@triton.jit
def not_finite(v):
    """int32 [R]: 1 for rows that hold NaN or an infinity."""
    return tl.max(tl.where(tl.abs(v) <= LARGEST, 0, 1), 1)


@triton.jit
def store_rows(q, row, rows, k, q_stride, value):
    mask = (row < rows)[:, None] & (k < q_stride)[None, :]
    tl.store(q + row.to(tl.int64)[:, None] * q_stride + k[None, :], whole(value).to(tl.int8), mask)


@triton.jit
def quantize_rows_kernel(
    x,  # [rows, K]
    q,  # int8 [rows, q_stride], zero from K on
    scale,  # float32 [rows]
    rows,
    K,
    q_stride,
    ONE: tl.constexpr,  # a block holds a whole row
    R: tl.constexpr,
    BK: tl.constexpr,
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.arange(0, BK)
    v = load_rows(x, row, rows, k, K)
    largest = tl.max(tl.abs(v), 1)
    bad = not_finite(v)
    if not ONE:
        for begin in range(BK, K, BK):
            v = load_rows(x, row, rows, begin + k, K)
            largest = tl.maximum(largest, tl.max(tl.abs(v), 1))
            bad = tl.maximum(bad, not_finite(v))
    usable = (bad == 0) & (largest >= SMALLEST_QUANTIZABLE)
    divisor = tl.where(usable, largest, 1.0)
    inverse = tl.where(usable, tl.div_rn(tl.full((R,), 127.0, tl.float32), divisor), 0.0)
    found = tl.div_rn(divisor, tl.full((R,), 127.0, tl.float32))
    found = tl.where(usable, found, tl.where(bad == 0, 0.0, float("nan")))
    tl.store(scale + row, found, row < rows)
    if ONE:
        store_rows(q, row, rows, k, q_stride, tl.where(usable[:, None], v, 0.0) * inverse[:, None])
    else:
        for begin in range(0, q_stride, BK):
            v = load_rows(x, row, rows, begin + k, K)
            store_rows(q, row, rows, begin + k, q_stride, tl.where(usable[:, None], v, 0.0) * inverse[:, None])


@triton.jit
def quantize_fixed_kernel(
    x,  # [rows, K]
    q,  # int8 [rows, q_stride], zero from K on
    scale,  # float32 [rows]
    fixed,  # float32, one
    rows,
    K,
    q_stride,
    R: tl.constexpr,
    BK: tl.constexpr,
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    s = tl.load(fixed + row * 0)
    valid = (s >= 0.0) & (s <= LARGEST)
    tiny = s < SMALLEST_QUANTIZABLE
    usable = valid & ~tiny
    inverse = tl.where(usable, tl.div_rn(tl.full((R,), 1.0, tl.float32), tl.where(usable, s, 1.0)), 0.0)
    bad = tl.zeros((R,), tl.int32)
    for begin in range(0, q_stride, BK):
        k = begin + tl.arange(0, BK)
        v = load_rows(x, row, rows, k, K)
        bad = tl.maximum(bad, not_finite(v))
        scaled = v * inverse[:, None]
        scaled = tl.where(scaled > -127.0, scaled, -127.0)  # NaN becomes a number
        store_rows(q, row, rows, k, q_stride, tl.where(scaled < 127.0, scaled, 127.0))
    found = tl.where((bad == 0) & valid, tl.where(tiny, 0.0, s), float("nan"))
    tl.store(scale + row, found, row < rows)


def configs(k: int, rows: int) -> list[Config]:
    if interpreted():
        block = min(4096, power_of_2(k, 16))
        return [Config({"R": min(16, power_of_2(rows)), "BK": block}, 4, 1)]
    block = min(8192, power_of_2(k, 64))
    across = max(1, 1024 // block)
    return [Config({"R": across, "BK": block}, warps, 1) for warps in ((2, 4) if block <= 1024 else (4, 8))]


def run(x: Tensor, fixed: Tensor | None = None, pad: bool = True) -> tuple[Tensor, Tensor]:
    """x [M,K] contiguous -> q int8 [M,K'], scale float32 [M]; K' = K, or, with pad, the next multiple of 16."""
    m, k = x.shape
    stride = -(-k // ALIGNMENT) * ALIGNMENT if pad else k
    q = torch.empty((m, stride), dtype=torch.int8, device=x.device)
    scale = torch.empty((m,), dtype=torch.float32, device=x.device)
    if m == 0:
        return q, scale
    args = {"x": x, "q": q, "scale": scale, "rows": m, "K": k, "q_stride": stride}
    found = configs(k, m)
    grid = lambda c: (triton.cdiv(m, c["R"]),)  # noqa: E731
    if fixed is not None:
        launch(quantize_fixed_kernel, grid, {**args, "fixed": fixed}, found, (x.dtype, power_of_2(m), k))
    else:
        args["ONE"] = k <= found[0].constants["BK"]
        launch(quantize_rows_kernel, grid, args, found, (x.dtype, power_of_2(m), k))
    return q, scale
