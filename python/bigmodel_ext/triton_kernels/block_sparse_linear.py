"""A linear layer with weights in square blocks (see formats.block_sparse), and its gradients: a program multiplies the
blocks of one block row, or of one block column, or makes one block's gradient. No sum is split, so results are the same
in every run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import multiply, round_to, store_finished, widen
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2


@triton.jit
def block_rows_kernel(
    x,  # [M,K]
    values,  # [blocks, S, S]: of K, of N
    begins,  # int32 [N / S + 1]: where each row of blocks begins
    places,  # int32 [blocks]: which block comes when, or None: as they lie
    other,  # int32 [blocks]: of each, in that order, where it stands in K
    bias,  # [N] or None
    out,  # [M,N]
    M,
    N,
    K,
    count,  # of blocks
    TRANSPOSED: tl.constexpr,  # blocks are read [of N, of K]
    S: tl.constexpr,
    BM: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BM)
    pid = tl.program_id(0)
    m = pid % tiles_m * BM + tl.arange(0, BM)
    row = pid // tiles_m
    s = tl.arange(0, S)
    acc = tl.zeros((BM, S), tl.float32)
    begin = tl.maximum(tl.load(begins + row), 0)
    end = tl.minimum(tl.load(begins + row + 1), count)
    for i in range(begin, end):
        k = tl.load(other + i).to(tl.int64) * S + s
        place = i
        if places is not None:
            place = tl.load(places + i)
        left = tl.load(
            x + m.to(tl.int64)[:, None] * K + k[None, :], (m < M)[:, None] & ((k >= 0) & (k < K))[None, :], 0.0
        )
        right = tl.load(values + tl.cast(place, tl.int64) * S * S + s[:, None] * S + s[None, :])
        if TRANSPOSED:
            right = tl.trans(right)
        if left.dtype != right.dtype:
            left = widen(left)
        acc = multiply(left, right, acc)
    store_finished(out, acc, bias, m, row * S + s, M, N, "none")


@triton.jit
def block_values_kernel(
    grad,  # [M,N]
    x,  # [M,K]
    rows,  # int32 [blocks]: where each stands in N
    col,  # int32 [blocks]: and in K
    out,  # [blocks, S, S]
    M,
    N,
    K,
    S: tl.constexpr,
    BM: tl.constexpr,
):
    i = tl.program_id(0)
    s = tl.arange(0, S)
    n, k = tl.load(rows + i) * S + s, tl.load(col + i).to(tl.int64) * S + s
    in_n, in_k = n < N, (k >= 0) & (k < K)
    acc = tl.zeros((S, S), tl.float32)
    for begin in range(0, M, BM):
        m = begin + tl.arange(0, BM).to(tl.int64)
        left = tl.load(x + m[:, None] * K + k[None, :], (m < M)[:, None] & in_k[None, :], 0.0)
        right = tl.load(grad + m[:, None] * N + n[None, :], (m < M)[:, None] & in_n[None, :], 0.0)
        acc = multiply(tl.trans(left), right, acc)
    acc = tl.where(in_k[:, None] & in_n[None, :], acc, 0.0)  # beyond the weight NaN times 0 may have come
    at = i.to(tl.int64) * S * S + s[:, None] * S + s[None, :]
    tl.store(out + at, round_to(acc, out.dtype.element_ty))


def configs(m: int, dtype: torch.dtype) -> list[Config]:
    if interpreted():
        return [Config({"BM": min(256, power_of_2(m, 16))}, 4, 1)]
    if m <= 16:
        return [Config({"BM": 16}, 4, 3), Config({"BM": 16}, 2, 4)]
    if dtype == torch.float32:
        return [Config({"BM": 32}, 4, 2), Config({"BM": 64}, 8, 2)]
    return [Config({"BM": 64}, 4, 3), Config({"BM": 128}, 4, 3)]


def _multiply(
    x: Tensor, values: Tensor, begins: Tensor, places: Tensor | None, other: Tensor, bias: Tensor | None, n: int
) -> Tensor:
    (m, k), size = x.shape, values.shape[1]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    args = {
        "x": x, "values": values, "begins": begins, "places": places, "other": other, "bias": bias, "out": out,
        "M": m, "N": n, "K": k, "count": other.shape[0], "TRANSPOSED": places is not None, "S": size,
    }  # fmt: skip
    if out.numel():
        launch(
            block_rows_kernel,
            lambda c: (triton.cdiv(m, c["BM"]) * triton.cdiv(n, size),),
            args,
            configs(m, values.dtype),
            (x.dtype, values.dtype, power_of_2(m), n, k, size, places is None),
        )
    return out


def _rows(crow: Tensor, count: int) -> Tensor:
    """int32 [blocks]: the block row of each; nothing waits for the device."""
    at = torch.arange(count, dtype=torch.int32, device=crow.device)
    return torch.searchsorted(crow, at, right=True, out_int32=True).sub_(1).clamp_(0, max(0, crow.shape[0] - 2))


def forward(x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """x [M,K]; all contiguous."""
    return _multiply(x, values, crow, None, col, bias, n)


def grad_input(grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, k: int) -> Tensor:
    """grad [M,N]; all contiguous. The blocks are put in the order of their columns first."""
    columns = -(-k // values.shape[1])
    sorted_col, places = torch.sort(col, stable=True)
    bounds = torch.arange(columns + 1, dtype=torch.int32, device=col.device)
    begins = torch.searchsorted(sorted_col, bounds, out_int32=True)
    rows = _rows(crow, col.shape[0])[places]
    return _multiply(grad, values, begins, places.to(torch.int32), rows, None, k)


def grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, size: int) -> Tensor:
    """grad [M,N], x [M,K]; all contiguous."""
    (m, n), k, count = grad.shape, x.shape[1], col.shape[0]
    out = torch.empty((count, size, size), dtype=grad.dtype, device=grad.device)
    args = {
        "grad": grad, "x": x, "rows": _rows(crow, count), "col": col, "out": out, "M": m, "N": n, "K": k, "S": size,
    }  # fmt: skip
    if count:
        launch(
            block_values_kernel,
            lambda c: (count,),
            args,
            configs(m, grad.dtype)[:1] if m <= 16 else configs(m, grad.dtype),
            (grad.dtype, power_of_2(m), n, k, size),
        )
    return out
