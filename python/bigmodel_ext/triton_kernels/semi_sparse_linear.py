"""A linear layer with 2:4 weights (see formats.two_four), and its gradients. The stored half of the weights is what is
read; it is spread in registers, for dense products.

A number that is not finite must reach stored weights only, and a dense product multiplies it by the zeros between them
too. So the product leaves such numbers out and marks their rows, which a second kernel computes again weight by weight;
usually it finds none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import (
    LARGEST,
    multiply,
    round_to,
    store_finished,
    tile_of,
    widen,
)
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2

ROWS_AGAIN = 64  # rows whose marks a program looks at


@triton.jit
def stored_pairs(values, index, k_begin, n, N, K, BK: tl.constexpr):
    """Of the groups of four from input k_begin on, for outputs n: both values [BK/4, BN] and their positions."""
    g = k_begin // 4 + tl.arange(0, BK // 4)
    tile = (n // 32).to(tl.int64)[None, :] * tl.cdiv(K, 32) + (g // 8)[:, None]
    mask = (g * 4 < K)[:, None] & (n < N)[None, :]
    at = tile * 512 + (g % 8 * 64)[:, None] + (n % 32)[None, :]
    first, second = tl.load(values + at, mask, 0.0), tl.load(values + at + 32, mask, 0.0)
    code = tl.load(index + tile * 128 + (n % 32 * 4)[None, :] + (g % 8 // 2)[:, None], mask, 0).to(tl.int32)
    code = code >> (g % 2 * 4)[:, None]
    return first, second, code & 3, code >> 2 & 3


@triton.jit
def dense_tile(values, index, k_begin, n, N, K, BK: tl.constexpr, BN: tl.constexpr):
    """[BK,BN] of the weight, transposed."""
    first, second, p0, p1 = stored_pairs(values, index, k_begin, n, N, K, BK)
    position = tl.arange(0, 4)[None, :, None]
    zero = tl.zeros((BK // 4, 4, BN), first.dtype)
    spread = tl.where(position == p0[:, None, :], first[:, None, :], zero)
    spread = tl.where(position == p1[:, None, :], second[:, None, :], spread)
    return tl.reshape(spread, (BK, BN))


@triton.jit
def semi_kernel(
    x,  # [M,K]
    values,
    index,
    bias,  # [N] or None
    out,  # [M,N]
    marks,  # int32 [M]: 1 where a row of x is not finite
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BM, BN)
    m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    row = x + m.to(tl.int64)[:, None] * K
    acc = tl.zeros((BM, BN), tl.float32)
    bad = tl.zeros((BM,), tl.int32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        left = tl.load(row + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        finite = tl.abs(widen(left)) <= LARGEST
        bad = tl.maximum(bad, tl.max(tl.where(finite, 0, 1), 1))
        left = tl.where(finite, left, 0.0).to(left.dtype)
        right = dense_tile(values, index, begin, n, N, K, BK, BN)
        if left.dtype != right.dtype:
            left = widen(left)
        acc = multiply(left, right, acc)
    store_finished(out, acc, bias, m, n, M, N, "none")
    if tile_n == 0:
        tl.store(marks + m, bad, m < M)


@triton.jit
def semi_again_kernel(
    x,
    values,
    index,
    bias,
    out,
    marks,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    first_m = tl.program_id(0) * BM
    rows = first_m + tl.arange(0, BM)
    if tl.max(tl.load(marks + rows, rows < M, 0)) > 0:
        n = tl.program_id(1) * BN + tl.arange(0, BN)
        for m in range(first_m, tl.minimum(first_m + BM, M)):
            if tl.load(marks + m) > 0:
                acc = tl.zeros((BN,), tl.float32)
                row = x + tl.cast(m, tl.int64) * K
                for begin in range(0, K, BK):
                    v0, v1, p0, p1 = stored_pairs(values, index, begin, n, N, K, BK)
                    k = begin + tl.arange(0, BK // 4) * 4
                    x0 = widen(tl.load(row + k[:, None] + p0, k[:, None] + p0 < K, 0.0))
                    x1 = widen(tl.load(row + k[:, None] + p1, k[:, None] + p1 < K, 0.0))
                    acc += tl.sum(x0 * widen(v0) + x1 * widen(v1), 0)
                store_finished(out, acc[None, :], bias, m + tl.zeros((1,), tl.int32), n, M, N, "none")


@triton.jit
def semi_grad_input_kernel(
    grad,  # [M,N]
    values,
    index,
    out,  # [M,K]
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile_m, tile_k = tile_of(tl.program_id(0), M, K, BM, BK)
    m = tile_m * BM + tl.arange(0, BM)
    acc = tl.zeros((BM, BK), tl.float32)
    for begin in range(0, N, BN):
        n = begin + tl.arange(0, BN)
        at = m.to(tl.int64)[:, None] * N + n[None, :]
        left = tl.load(grad + at, (m < M)[:, None] & (n < N)[None, :], 0.0)
        right = tl.trans(dense_tile(values, index, tile_k * BK, n, N, K, BK, BN))
        if left.dtype != right.dtype:
            left = widen(left)
        acc = multiply(left, right, acc)
    store_finished(out, acc, None, m, tile_k * BK + tl.arange(0, BK), M, K, "none")


@triton.jit
def semi_values_kernel(
    grad,  # [M,N]
    x,  # [M,K]
    index,
    out,  # as values
    M,
    N,
    K,
    BM: tl.constexpr,
):
    tile = tl.program_id(0)
    tiles_k = tl.cdiv(K, 32)
    n, k = tile // tiles_k * 32 + tl.arange(0, 32), tile % tiles_k * 32 + tl.arange(0, 32)
    acc = tl.zeros((32, 32), tl.float32)
    for begin in range(0, M, BM):
        m = begin + tl.arange(0, BM).to(tl.int64)
        left = tl.load(x + m[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        right = tl.load(grad + m[:, None] * N + n[None, :], (m < M)[:, None] & (n < N)[None, :], 0.0)
        acc = multiply(tl.trans(left), right, acc)
    acc = tl.where((k < K)[:, None] & (n < N)[None, :], acc, 0.0)  # beyond the weight NaN times 0 may have come
    groups = tl.reshape(acc, (8, 4, 32))
    g, column = tl.arange(0, 8), tl.arange(0, 32)
    code = tl.load(index + tile.to(tl.int64) * 128 + column[None, :] * 4 + (g // 2)[:, None]).to(tl.int32)
    code = code >> (g % 2 * 4)[:, None]
    position = tl.arange(0, 4)[None, :, None]
    first = tl.sum(tl.where(position == (code & 3)[:, None, :], groups, 0.0), 1)
    second = tl.sum(tl.where(position == (code >> 2 & 3)[:, None, :], groups, 0.0), 1)
    at = tile.to(tl.int64) * 512 + g[:, None] * 64 + column[None, :]
    tl.store(out + at, round_to(first, out.dtype.element_ty))
    tl.store(out + at + 32, round_to(second, out.dtype.element_ty))


def _config(bm: int, bn: int, bk: int, warps: int, stages: int) -> Config:
    return Config({"BM": bm, "BN": bn, "BK": bk}, warps, stages)


def configs(m: int, dtype: torch.dtype) -> list[Config]:
    if interpreted():
        return [_config(min(64, power_of_2(m, 16)), 64, 128, 4, 1)]
    if dtype == torch.float32:  # no tensor cores: small tiles
        return [_config(16, 64, 32, 4, 2), _config(32, 64, 32, 8, 2)]
    if m <= 16:
        return [_config(16, 32, 128, 4, 3), _config(16, 64, 64, 4, 3)]
    return [_config(64, 64, 64, 4, 3), _config(128, 128, 32, 8, 3)]


def forward(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """x [M,K]; all contiguous."""
    m, k = x.shape
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    marks = torch.empty(m, dtype=torch.int32, device=x.device)
    args = {
        "x": x, "values": values, "index": index, "bias": bias, "out": out, "marks": marks, "M": m, "N": n, "K": k,
    }  # fmt: skip
    shape_class = (x.dtype, values.dtype, power_of_2(m), n, k)
    tiles = lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(n, c["BN"]),)  # noqa: E731
    launch(semi_kernel, tiles, args, configs(m, values.dtype), shape_class)
    again = [_config(ROWS_AGAIN, 64, 64, 4, 1)]
    blocks = lambda c: (triton.cdiv(m, c["BM"]), triton.cdiv(n, c["BN"]))  # noqa: E731
    launch(semi_again_kernel, blocks, args, again, shape_class)
    return out


def grad_input(grad: Tensor, values: Tensor, index: Tensor, k: int) -> Tensor:
    """grad [M,N]; all contiguous. Here numbers that are not finite reach what a dense layer's would."""
    m, n = grad.shape
    out = torch.empty((m, k), dtype=grad.dtype, device=grad.device)
    args = {"grad": grad, "values": values, "index": index, "out": out, "M": m, "N": n, "K": k}
    if out.numel():
        launch(
            semi_grad_input_kernel,
            lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(k, c["BK"]),),
            args,
            configs(m, values.dtype),
            (grad.dtype, values.dtype, power_of_2(m), n, k),
        )
    return out


def grad_values(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """grad [M,N], x [M,K]; all contiguous."""
    (m, n), k = grad.shape, x.shape[1]
    out = torch.empty((*index.shape[:2], 8, 2, 32), dtype=grad.dtype, device=grad.device)
    args = {"grad": grad, "x": x, "index": index, "out": out, "M": m, "N": n, "K": k}
    if out.numel():
        rows = min(128, power_of_2(m, 16)) if interpreted() else 64 if m > 32 else 32
        found = [
            Config({"BM": rows}, warps, 1 if interpreted() else 3) for warps in ((4,) if interpreted() else (2, 4))
        ]
        grid = lambda c: (index.shape[0] * index.shape[1],)  # noqa: E731
        launch(semi_values_kernel, grid, args, found, (grad.dtype, power_of_2(m), n, k))
    return out
