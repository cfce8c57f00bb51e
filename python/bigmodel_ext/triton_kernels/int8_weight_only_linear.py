"""A linear layer with packed int8 weights and float activations: the weights become floats in registers, exactly."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import INTERPRETED, multiply, store_finished, tile_of
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2
from bigmodel_ext.triton_kernels.int8_mm import packed_tile


@triton.jit
def weight_only_kernel(
    x,  # [M,K]
    weight,  # int8, packed
    weight_scale,  # float32 [N]
    bias,  # [N] or None
    out,  # [M,N]
    M,
    N,
    K,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BM, BN)
    m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    row = x + m.to(tl.int64)[:, None] * K
    acc = tl.zeros((BM, BN), tl.float32)
    for begin in range(0, K, BK):
        k = begin + tl.arange(0, BK)
        left = tl.load(row + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        right = packed_tile(weight, n, begin, N, K, BN, BK)
        right = right.to(tl.float32 if INTERPRETED else x.dtype.element_ty)
        acc = multiply(left, tl.trans(right), acc)
    acc = acc * tl.load(weight_scale + n, n < N, 0.0)[None, :]
    store_finished(out, acc, bias, m, n, M, N, ACTIVATION)


def _config(bm: int, bn: int, bk: int, warps: int, stages: int) -> Config:
    return Config({"BM": bm, "BN": bn, "BK": bk}, warps, stages)


def configs(m: int, k: int, dtype: torch.dtype) -> list[Config]:
    if interpreted():
        return [_config(32 if m > 16 else 16, 64, min(256, power_of_2(k, 16)), 4, 1)]
    if dtype == torch.float32:  # no tensor cores: small tiles
        return [_config(16, 64, 32, 4, 2), _config(32, 64, 32, 8, 2)]
    if m <= 16:
        return [_config(16, 32, 128, 4, 3), _config(16, 64, 128, 4, 3)]
    return [_config(64, 64, 64, 4, 3), _config(128, 128, 64, 8, 3)]


def run(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """x [M,K]; weight packed; all contiguous."""
    (m, k), n = x.shape, weight_scale.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    args = {
        "x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias, "out": out, "M": m, "N": n, "K": k,
        "ACTIVATION": activation,
    }  # fmt: skip
    if out.numel():
        launch(
            weight_only_kernel,
            lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(n, c["BN"]),),
            args,
            configs(m, k, x.dtype),
            (x.dtype, power_of_2(m), n, k),
        )
    return out
