"""a @ b.T of int8 matrices, exact in int32; and with the epilogue of a linear layer, from the same kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import store_finished, tile_of
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2


@triton.jit
def packed_tile(b, n, k_begin, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """[BN,BK] of a weight as formats.int8 packs it, [ceil(N/64), ceil(K/4) + 1, 64, 4]; slab 0 is not for us. Read in
    the order in which it lies, and turned in registers."""
    groups = tl.cdiv(K, 4)
    g = k_begin // 4 + tl.arange(0, BK // 4)
    at = (n // 64).to(tl.int64) * (groups + 1) * 256 + n % 64 * 4
    at = at[None, :, None] + ((g + 1) * 256)[:, None, None] + tl.arange(0, 4)[None, None, :]
    mask = (g < groups)[:, None, None] & (n < N)[None, :, None]
    return tl.reshape(tl.permute(tl.load(b + at, mask, 0), (1, 0, 2)), (BN, BK))


@triton.jit
def int8_kernel(
    a,  # int8 [M, a_stride], K columns of which count
    b,  # int8 [N, K], or packed
    out,  # int32 [M,N], or a float dtype
    x_scale,  # float32 [M], or None: out is int32
    weight_scale,  # float32 [N]
    bias,  # [N] or None
    M,
    N,
    K,
    a_stride,
    ACTIVATION: tl.constexpr,
    PACKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BM, BN)
    m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    a_row = a + m.to(tl.int64)[:, None] * a_stride
    b_row = b + n.to(tl.int64)[:, None] * K
    acc = tl.zeros((BM, BN), tl.int32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        left = tl.load(a_row + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0)
        if PACKED:
            right = packed_tile(b, n, begin, N, K, BN, BK)
        else:
            right = tl.load(b_row + k[None, :], (n < N)[:, None] & (k < K)[None, :], 0)
        acc = tl.dot(left, tl.trans(right), acc, out_dtype=tl.int32)
    if x_scale is None:
        at = m.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(out + at, acc, (m < M)[:, None] & (n < N)[None, :])
    else:
        y = acc.to(tl.float32) * tl.load(x_scale + m, m < M, 0.0)[:, None]
        y = y * tl.load(weight_scale + n, n < N, 0.0)[None, :]
        store_finished(out, y, bias, m, n, M, N, ACTIVATION)


def _config(bm: int, bn: int, bk: int, warps: int, stages: int) -> Config:
    return Config({"BM": bm, "BN": bn, "BK": bk}, warps, stages)


def configs(m: int, k: int) -> list[Config]:
    if interpreted():
        return [_config(32 if m > 16 else 16, 64, min(1024, power_of_2(k, 32)), 4, 1)]
    if m <= 16:
        return [_config(16, 32, 256, 4, 4), _config(16, 64, 256, 4, 3), _config(16, 128, 128, 4, 4)]
    if m <= 64:
        return [_config(64, 64, 128, 4, 4), _config(32, 64, 256, 4, 3), _config(64, 128, 128, 4, 3)]
    wide = Config({"BM": 128, "BN": 256, "BK": 128}, 8, 3, only="sm_90")  # elsewhere it has too few registers
    return [_config(128, 128, 128, 8, 3), wide, _config(128, 128, 64, 8, 4)]


def launch_int8(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    n: int,
    k: int,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
) -> None:
    """a [M,K'] with K' >= K; b [N,K] or packed (4 dimensions); all contiguous."""
    m = a.shape[0]
    if m == 0 or n == 0:
        return
    args = {
        "a": a, "b": b, "out": out, "x_scale": x_scale, "weight_scale": weight_scale, "bias": bias, "M": m, "N": n,
        "K": k, "a_stride": a.shape[1], "ACTIVATION": activation, "PACKED": b.dim() == 4,
    }  # fmt: skip
    launch(
        int8_kernel,
        lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(n, c["BN"]),),
        args,
        configs(m, k),
        (out.dtype, power_of_2(m), n, k, b.dim()),
    )


def run(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty((a.shape[0], b.shape[0]), dtype=torch.int32, device=a.device)
    launch_int8(a, b, out, b.shape[0], a.shape[1])
    return out
