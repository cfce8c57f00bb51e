"""A linear layer with unstructured sparse weights in panels (see formats.csr), and its gradients.

Few rows of activations: a program gathers them for the entries of some rows of the weight, which are read once and
never spread. More rows: the entries are spread to a dense weight in working memory, for a dense product; what is
gained there is the layer's memory, not time. A number that is not finite must reach stored weights only, so that
product leaves such numbers out and marks their rows, which the gathering kernel computes again; usually it finds
none.

Whatever crow, col and order hold, accesses stay within the tensors.
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

GATHERED_ROWS = 8  # of activations, up to which weights are not spread


@triton.jit
def bounds(crow, segment, valid, nnz):
    """Where segments begin, and how many entries they have: at most 256."""
    begin = tl.minimum(tl.maximum(tl.load(crow + segment, valid, 0), 0), nnz)
    end = tl.minimum(tl.load(crow + segment + 1, valid, 0), nnz)
    return begin, tl.minimum(tl.maximum(end - begin, 0), 256)


@triton.jit
def row_of(order, place, panel, N, block):
    """The row of the weight at a place of a panel; -1 where order names none of its block."""
    if order is None:
        return place
    within = tl.load(order + panel.to(tl.int64) * N + place, place < N, -1)
    row = place // block * block + within
    return tl.where((within >= 0) & (within < block) & (row < N), row, -1)


@triton.jit
def places_kernel(order, places, N, block, B: tl.constexpr):
    """places[panel, row] = place: the inverse of order."""
    place = tl.program_id(0) * B + tl.arange(0, B)
    panel = tl.program_id(1)
    row = row_of(order, place, panel, N, block)
    tl.store(places + panel.to(tl.int64) * N + row, place, (place < N) & (row >= 0))


@triton.jit
def gathered_sums(
    x, values, crow, col, places, m, row, N, K, x_stride, panel, panels, nnz,
    INT8: tl.constexpr, BM: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """[BM,R]: rows m of x times rows of the weight. INT8: an entry is four neighbouring int8."""
    width: tl.constexpr = 4 if INT8 else 1
    acc = tl.zeros((BM, R), tl.int32 if INT8 else tl.float32)
    for p in range(0, panels):
        segment = p * N + row.to(tl.int64)
        valid = row < N
        if places is not None:
            place = tl.load(places + segment, valid, -1)
            valid = place >= 0
            segment = p * N + place.to(tl.int64)
        begin, count = bounds(crow, segment, valid, nnz)
        for first in range(0, tl.max(count), E):
            e = first + tl.arange(0, E)
            mask = e[None, :] < count[:, None]
            at = begin.to(tl.int64)[:, None] + e[None, :]
            within = tl.load(col + at, mask, 0).to(tl.int32)
            k = p * panel + within
            mask = mask & (within < panel) & (k < K)
            from_x = m.to(tl.int64)[:, None, None] * x_stride + (k * width)[None, :, :]
            for j in tl.static_range(width):
                w = tl.load(values + at * width + j, mask, 0)
                v = tl.load(x + from_x + j, mask[None, :, :] & (m >= 0)[:, None, None], 0)
                if INT8:
                    acc += tl.sum(w.to(tl.int32)[None, :, :] * v.to(tl.int32), 2)
                else:
                    acc += tl.sum(widen(w)[None, :, :] * widen(v), 2)
    return acc


@triton.jit
def gather_kernel(
    x,  # [M,K]; int8: quantized, rows x_stride apart
    values,  # [nnz]; int8: [nnz, 4]
    crow,
    col,
    places,  # int32 [panels, N], or None
    bias,  # [N] or None
    out,  # [M,N]
    marks,  # int32 [M]: only the rows that it marks; None: all
    x_scale,  # float32 [M], or None: floats
    weight_scale,  # float32 [N]
    M,
    N,
    K,  # columns; int8: of blocks
    x_stride,
    panel,
    panels,
    nnz,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    ROWS: tl.constexpr,  # of x to a program
    BM: tl.constexpr,
    R: tl.constexpr,
    E: tl.constexpr,
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    first = tl.program_id(1) * ROWS
    some = 1
    if marks is not None:
        look = first + tl.arange(0, ROWS)
        some = tl.max(tl.load(marks + look, look < M, 0))
    if some > 0:
        for begin in range(first, tl.minimum(first + ROWS, M), BM):
            m = begin + tl.arange(0, BM)
            wanted = m < M
            if marks is not None:
                wanted = tl.load(marks + m, wanted, 0) > 0
            m = tl.where(wanted, m, -1)
            if tl.max(m) >= 0:
                acc = gathered_sums(
                    x, values, crow, col, places, m, row, N, K, x_stride, panel, panels, nnz, INT8, BM, R, E
                )
                m = tl.where(wanted, m, M)  # beyond the end: not stored
                if INT8:
                    y = acc.to(tl.float32) * tl.load(x_scale + m, m < M, 0.0)[:, None]
                    y = y * tl.load(weight_scale + row, row < N, 0.0)[None, :]
                else:
                    y = acc
                store_finished(out, y, bias, m, row, M, N, ACTIVATION)


@triton.jit
def spread_kernel(
    values,
    crow,
    col,
    order,  # int32 [panels, N], or None
    dense,  # [N, width * K], zero
    N,
    K,
    panel,
    nnz,
    block,
    WIDTH: tl.constexpr,  # neighbours to an entry
    R: tl.constexpr,
    E: tl.constexpr,
):
    place = tl.program_id(0) * R + tl.arange(0, R)
    p = tl.program_id(1)
    row = row_of(order, place, p, N, block)
    begin, count = bounds(crow, p.to(tl.int64) * N + place, (place < N) & (row >= 0), nnz)
    for first in range(0, tl.max(count), E):
        e = first + tl.arange(0, E)
        mask = e[None, :] < count[:, None]
        at = begin.to(tl.int64)[:, None] + e[None, :]
        within = tl.load(col + at, mask, 0).to(tl.int32)
        k = p * panel + within
        mask = mask & (within < panel) & (k < K)
        to = (row.to(tl.int64)[:, None] * K + k) * WIDTH
        for j in tl.static_range(WIDTH):
            tl.store(dense + to + j, tl.load(values + at * WIDTH + j, mask, 0), mask)


@triton.jit
def product_kernel(
    a,  # [M,C]
    b,  # element [c, d] is at c * b_c + d * b_d
    bias,  # [D] or None
    out,  # [M,D]
    marks,  # int32 [M]: 1 where a row of a is not finite, or None: such numbers are multiplied too
    M,
    D,
    C,
    b_c,
    b_d,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile_m, tile_d = tile_of(tl.program_id(0), M, D, BM, BN)
    m, d = tile_m * BM + tl.arange(0, BM), tile_d * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    bad = tl.zeros((BM,), tl.int32)
    for begin in range(0, C, BK):
        c = begin + tl.arange(0, BK)
        left = tl.load(a + m.to(tl.int64)[:, None] * C + c[None, :], (m < M)[:, None] & (c < C)[None, :], 0.0)
        at = c.to(tl.int64)[:, None] * b_c + d.to(tl.int64)[None, :] * b_d
        right = tl.load(b + at, (c < C)[:, None] & (d < D)[None, :], 0.0)
        if marks is not None:
            finite = tl.abs(widen(left)) <= LARGEST
            bad = tl.maximum(bad, tl.max(tl.where(finite, 0, 1), 1))
            left = tl.where(finite, left, 0.0).to(left.dtype)
        if left.dtype != right.dtype:
            left = widen(left)
        acc = multiply(left, right, acc)
    store_finished(out, acc, bias, m, d, M, D, ACTIVATION)
    if marks is not None:  # noqa: SIM102  known when it is compiled, unlike what follows
        if tile_d == 0:
            tl.store(marks + m, bad, m < M)


@triton.jit
def sampled_kernel(
    grad,  # [M,N]
    x,  # [M,K]
    crow,
    col,
    order,  # int32 [panels, N], or None
    out,  # [nnz]
    M,
    N,
    K,
    panel,
    nnz,
    block,
    BM: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    E: tl.constexpr,
):
    """A panel's part of grad.T @ x for some rows of the weight; the stored entries are picked from it."""
    place = tl.program_id(0) * R + tl.arange(0, R)
    p = tl.program_id(1)
    row = row_of(order, place, p, N, block)
    valid = (place < N) & (row >= 0)
    k = p * panel + tl.arange(0, P)
    acc = tl.zeros((R, P), tl.float32)
    for begin in range(0, M, BM):
        m = begin + tl.arange(0, BM).to(tl.int64)
        left = tl.load(grad + m[:, None] * N + row[None, :], (m < M)[:, None] & valid[None, :], 0.0)
        right = tl.load(x + m[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
        acc = multiply(tl.trans(left), right, acc)
    first_entry, count = bounds(crow, p.to(tl.int64) * N + place, place < N, nnz)
    for first in range(0, tl.max(count), E):
        e = first + tl.arange(0, E)
        mask = e[None, :] < count[:, None]
        at = first_entry.to(tl.int64)[:, None] + e[None, :]
        within = tl.load(col + at, mask, 0).to(tl.int32)
        picked = tl.gather(acc, tl.minimum(within, P - 1), 1)
        picked = tl.where((within < panel) & (p * panel + within < K) & valid[:, None], picked, 0.0)
        tl.store(out + at, round_to(picked, out.dtype.element_ty), mask)


def order_block(n: int) -> int:
    """Rows of a block within which `order` permutes (see formats.csr)."""
    blocks = 2 * -(-n // 1024)
    return (-(-n // blocks) + 15) // 16 * 16 if blocks else 16


def _gather_config(rows: int, m: int, r: int, e: int, warps: int) -> Config:
    return Config({"ROWS": rows, "BM": m, "R": r, "E": e}, warps, 1)


def gather_configs(m: int, panel: int) -> list[Config]:
    if interpreted():
        return [_gather_config(8, min(8, power_of_2(m)), 64, min(32, power_of_2(panel)), 4)]
    few = min(4, power_of_2(m))
    return [_gather_config(8, few, 16, 16, 2), _gather_config(8, few, 32, 16, 4), _gather_config(8, few, 16, 32, 4)]


def product_configs(m: int, c: int, dtype: torch.dtype) -> list[Config]:
    if interpreted():
        return [Config({"BM": min(64, power_of_2(m, 16)), "BN": 128, "BK": min(512, power_of_2(c, 16))}, 4, 1)]
    sizes = ((32, 64, 32), (64, 64, 32)) if dtype == torch.float32 else ((64, 64, 64), (128, 128, 64))
    return [Config({"BM": bm, "BN": bn, "BK": bk}, 4 if bm < 128 else 8, 3) for bm, bn, bk in sizes]


def inverse_order(order: Tensor | None, n: int, panels: int) -> Tensor | None:
    """int32 [panels, N]: where each row stands; -1 where an order that is none leaves one out."""
    if order is None:
        return None
    places = torch.full((panels, n), -1, dtype=torch.int32, device=order.device)
    if places.numel():
        args = {"order": order, "places": places, "N": n, "block": order_block(n)}
        launch(places_kernel, lambda c: (triton.cdiv(n, c["B"]), panels), args, [Config({"B": 256}, 4, 1)], ())
    return places


def spread(values: Tensor, crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int) -> Tensor:
    """The weight [N,K], or of int8 blocks [N, 4 K], dense, in working memory."""
    width = values.shape[1] if values.dim() == 2 else 1
    dense = torch.zeros((n, k * width), dtype=values.dtype, device=values.device)
    args = {
        "values": values, "crow": crow, "col": col, "order": order, "dense": dense, "N": n, "K": k, "panel": panel,
        "nnz": col.shape[0], "block": order_block(n), "WIDTH": width,
    }  # fmt: skip
    if dense.numel() and col.shape[0]:
        block = Config({"R": 256, "E": 32}, 4, 1) if interpreted() else Config({"R": 16, "E": 32}, 4, 1)
        panels = -(-k // panel)
        launch(spread_kernel, lambda c: (triton.cdiv(n, c["R"]), panels), args, [block], ())
    return dense


def gather(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    panel: int,
    k: int,
    activation: str,
    marks: Tensor | None = None,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """out [M,N] row by row; with marks only marked rows. scales: x and values are int8, k counts blocks."""
    (m, n), panels = out.shape, -(-k // panel)
    args = {
        "x": x, "values": values, "crow": crow, "col": col, "places": inverse_order(order, n, panels), "bias": bias,
        "out": out, "marks": marks, "x_scale": scales and scales[0], "weight_scale": scales and scales[1], "M": m,
        "N": n, "K": k, "x_stride": x.shape[1], "panel": panel, "panels": panels, "nnz": col.shape[0],
        "ACTIVATION": activation, "INT8": scales is not None,
    }  # fmt: skip
    found = gather_configs(m, panel)
    if marks is not None:
        found = [_gather_config(64, 1, 64, 32, 4)]
    launch(
        gather_kernel,
        lambda c: (triton.cdiv(n, c["R"]), triton.cdiv(m, c["ROWS"])),
        args,
        found,
        (x.dtype, values.dtype, power_of_2(m), n, k, panel, power_of_2(col.shape[0])),
    )


def product(
    a: Tensor, b: Tensor, transposed: bool, bias: Tensor | None, out: Tensor, activation: str, marks: Tensor | None
) -> None:
    """a [M,C] times b [C,D], or [D,C] if transposed."""
    (m, c), d = a.shape, out.shape[1]
    args = {
        "a": a, "b": b, "bias": bias, "out": out, "marks": marks, "M": m, "D": d, "C": c,
        "b_c": 1 if transposed else d, "b_d": c if transposed else 1, "ACTIVATION": activation,
    }  # fmt: skip
    launch(
        product_kernel,
        lambda s: (triton.cdiv(m, s["BM"]) * triton.cdiv(d, s["BN"]),),
        args,
        product_configs(m, c, b.dtype),
        (a.dtype, b.dtype, power_of_2(m), d, c, transposed),
    )


def forward(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    n: int,
    panel: int,
    activation: str,
) -> Tensor:
    """x [M,K]; all contiguous."""
    m, k = x.shape
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    marks = None
    if m > GATHERED_ROWS:
        marks = torch.empty(m, dtype=torch.int32, device=x.device)
        product(x, spread(values, crow, col, order, n, k, panel), True, bias, out, activation, marks)
    gather(x, values, crow, col, order, bias, out, panel, k, activation, marks)
    return out


def grad_input(
    grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, order: Tensor | None, k: int, panel: int
) -> Tensor:
    """grad [M,N]; all contiguous. Here numbers that are not finite reach what a dense layer's would."""
    m, n = grad.shape
    out = torch.empty((m, k), dtype=grad.dtype, device=grad.device)
    if out.numel():
        product(grad, spread(values, crow, col, order, n, k, panel), False, None, out, "none", None)
    return out


def grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, order: Tensor | None, panel: int) -> Tensor:
    """grad [M,N], x [M,K]; all contiguous."""
    (m, n), k = grad.shape, x.shape[1]
    out = torch.zeros(col.shape, dtype=grad.dtype, device=grad.device)
    args = {
        "grad": grad, "x": x, "crow": crow, "col": col, "order": order, "out": out, "M": m, "N": n, "K": k,
        "panel": panel, "nnz": col.shape[0], "block": order_block(n),
    }  # fmt: skip
    if not (col.shape[0] and n and k):
        return out
    wide, rows = power_of_2(panel, 16), 32 if m <= 32 or grad.dtype == torch.float32 else 64
    if interpreted():
        found = [Config({"BM": min(256, power_of_2(m, 16)), "R": 128, "P": wide, "E": min(32, wide)}, 4, 1)]
    else:
        found = [Config({"BM": rows, "R": r, "P": wide, "E": 16}, warps, 2) for r, warps in ((16, 4), (32, 4))]
    launch(
        sampled_kernel,
        lambda c: (triton.cdiv(n, c["R"]), triton.cdiv(k, panel)),
        args,
        found,
        (grad.dtype, power_of_2(m), n, k, panel),
    )
    return out
