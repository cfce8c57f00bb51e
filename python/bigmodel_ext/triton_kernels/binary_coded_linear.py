"""A linear layer with binary-coded weights (see formats.binary_coded), activations quantized per row: a group's signs
become int8 in registers, and its sums, exact in int32, are scaled plane by plane in the reference's order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels import quantize_rows
from bigmodel_ext.triton_kernels._device import store_finished
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2


@triton.jit
def binary_kernel(
    q,  # int8 [M, q_stride]
    x_scale,  # float32 [M]
    packed,  # int16 [ceil(N/64), words, bits, 64]: signs of 16 inputs
    scales,  # float16 [ceil(N/64), G, bits, 64]
    bias,  # [N] or None
    out,  # [M,N]
    M,
    N,
    K,
    q_stride,
    words,
    groups,
    group_size,
    group_words,
    ACTIVATION: tl.constexpr,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,  # at most 64
    W: tl.constexpr,  # words of a step
):
    tiles_m = tl.cdiv(M, BM)
    pid = tl.program_id(0)
    m = pid % tiles_m * BM + tl.arange(0, BM)
    first = pid // tiles_m * BN
    n = first + tl.arange(0, BN)
    panel = (first // 64).to(tl.int64)
    lane = first % 64 + tl.arange(0, BN)
    signs = packed + panel * words * BITS * 64 + lane
    alpha = scales + panel * groups * BITS * 64 + lane
    bit = tl.arange(0, 16)
    z = tl.zeros((BM, BN), tl.float32)
    for g in range(0, groups):
        begin = g * group_size
        size = tl.minimum(group_size, K - begin)
        for b in tl.static_range(BITS):
            sums = tl.zeros((BM, BN), tl.int32)
            for w in range(0, tl.cdiv(size, 16), W):
                word = w + tl.arange(0, W)
                at = ((g * group_words + word) * BITS + b) * 64
                code = tl.load(signs[None, :] + at[:, None], (word * 16 < size)[:, None] & (n < N)[None, :], 0)
                ones = (code.to(tl.int32)[:, None, :] >> bit[None, :, None]) & 1
                spins = tl.reshape((ones * 2 - 1).to(tl.int8), (W * 16, BN))
                k = w * 16 + tl.arange(0, W * 16)
                from_q = m.to(tl.int64)[:, None] * q_stride + (begin + k)[None, :]
                left = tl.load(q + from_q, (m < M)[:, None] & (k < size)[None, :], 0)
                sums = tl.dot(left, spins, sums, out_dtype=tl.int32)
            scale = tl.load(alpha + (g * BITS + b) * 64, n < N, 0.0).to(tl.float32)
            z += sums.to(tl.float32) * scale[None, :]
    z = z * tl.load(x_scale + m, m < M, 0.0)[:, None]
    store_finished(out, z, bias, m, n, M, N, ACTIVATION)


def configs(m: int, group_size: int) -> list[Config]:
    step = min(8, power_of_2(-(-group_size // 16), 2))  # int8 products take 32 inputs at least
    if interpreted():
        wide = min(64, power_of_2(-(-group_size // 16), 2))
        return [Config({"BM": min(64, power_of_2(m, 16)), "BN": 64, "W": wide}, 4, 1)]
    if m <= 16:
        return [Config({"BM": 16, "BN": n, "W": step}, warps, 3) for n, warps in ((32, 2), (64, 4))]
    return [Config({"BM": 64, "BN": 64, "W": step}, 4, 3), Config({"BM": 32, "BN": 64, "W": step}, 4, 3)]


def run(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, n: int, group_size: int, activation: str
) -> Tensor:
    """x [M,K]; all contiguous."""
    m, k = x.shape
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    q, scale = quantize_rows.run(x)
    words, bits, groups = packed.shape[1], packed.shape[2], scales.shape[1]
    size = min(group_size, max(k, 1))  # a group of more than all inputs is one of all
    args = {
        "q": q, "x_scale": scale, "packed": packed.view(torch.int16), "scales": scales, "bias": bias, "out": out,
        "M": m, "N": n, "K": k, "q_stride": q.shape[1], "words": words, "groups": groups, "group_size": size,
        "group_words": -(-size // 16), "ACTIVATION": activation, "BITS": bits,
    }  # fmt: skip
    launch(
        binary_kernel,
        lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(n, c["BN"]),),
        args,
        configs(m, size),
        (x.dtype, power_of_2(m), n, k, bits, size),
    )
    return out
