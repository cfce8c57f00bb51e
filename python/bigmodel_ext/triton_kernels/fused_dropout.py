"""out = residual + keep * scale * act(x + bias), and out = keep * scale * act'(x + bias) * grad (see
csrc/common/dropout.h): one pass over memory, the mask from Philox counters, equal to the CPU's."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import activate, kept, round_to, slope, widen
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2


@triton.jit
def dropout_kernel(
    x,  # [rows, features]
    bias,  # [features] or None
    other,  # [rows, features]: the residual, or None; backward: the gradient
    out,  # [rows, features]
    seed,  # int64, one, or None: everything is kept
    rows,
    features,
    threshold,
    scale,
    ACTIVATION: tl.constexpr,
    BACKWARD: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    blocks = tl.cdiv(features, C)
    pid = tl.program_id(0).to(tl.int64)
    row = pid // blocks * R + tl.arange(0, R)
    begin = pid % blocks * C
    column = begin + tl.arange(0, C)
    mask = (row < rows)[:, None] & (column < features)[None, :]
    at = row[:, None] * features + column[None, :]
    z = widen(tl.load(x + at, mask, 0.0))
    if bias is not None:
        z += widen(tl.load(bias + column, column < features, 0.0))[None, :]
    if BACKWARD:
        y = widen(tl.load(other + at, mask, 0.0)) * slope(z, ACTIVATION) * scale
        if seed is not None:
            y = tl.where(kept(tl.load(seed), row * features + begin, threshold, R, C, ALIGNED), y, 0.0)
    else:
        y = activate(z, ACTIVATION) * scale
        if other is not None:
            residual = widen(tl.load(other + at, mask, 0.0))
            y += residual
            if seed is not None:
                y = tl.where(kept(tl.load(seed), row * features + begin, threshold, R, C, ALIGNED), y, residual)
        elif seed is not None:
            y = tl.where(kept(tl.load(seed), row * features + begin, threshold, R, C, ALIGNED), y, 0.0)
    tl.store(out + at, round_to(y, out.dtype.element_ty), mask)


def configs(features: int, rows: int) -> list[Config]:
    sizes = ((8192, 4),) if interpreted() else ((1024, 4), (2048, 4), (2048, 8), (4096, 8))
    found = []
    for size, warps in sizes:
        columns = min(size, power_of_2(features, 16))
        while (
            not interpreted() and columns > 128 and features % columns and features < 4 * columns
        ):  # else much of the last block is idle
            columns //= 2
        found.append(Config({"R": min(size // columns, power_of_2(rows)), "C": columns}, warps, 1))
    return found


def mask_arguments(p: float, seed: Tensor | None) -> dict[str, Any]:
    """Seed, threshold and scale as kernels take them."""
    threshold = math.floor(p * 65536.0 + 0.5)
    left = 65536 - threshold
    return {"seed": seed if threshold else None, "threshold": threshold, "scale": 65536.0 / left if left else 0.0}


def run(
    x: Tensor, bias: Tensor | None, other: Tensor | None, seed: Tensor | None, p: float, activation: str, backward: bool
) -> Tensor:
    """All contiguous; bias float32 or of x's dtype."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    features = x.numel() if bias is None else x.shape[-1]
    rows = x.numel() // features
    args = {
        "x": x, "bias": bias, "other": other, "out": out, "rows": rows, "features": features,
        **mask_arguments(p, seed), "ACTIVATION": activation, "BACKWARD": backward,
        "ALIGNED": bias is None or features % 8 == 0,
    }  # fmt: skip
    launch(
        dropout_kernel,
        lambda c: (triton.cdiv(features, c["C"]) * triton.cdiv(rows, c["R"]),),
        args,
        configs(features, rows),
        (x.dtype, power_of_2(rows), features if bias is not None else power_of_2(features), activation, backward),
    )
    return out
