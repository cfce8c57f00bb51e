"""Fused dropout and the normalisation of its rows (see csrc/cpu/fused_dropout_norm.h): a block holds whole rows, so
that memory is read and written once. The backward kernel also sums over rows, in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigmodel_ext.triton_kernels._device import activate, kept, round_to, slope, widen
from bigmodel_ext.triton_kernels._launch import Config, interpreted, launch, power_of_2
from bigmodel_ext.triton_kernels.fused_dropout import mask_arguments


@triton.jit
def norm_kernel(
    x,  # [rows, features], as residual, y and h
    bias,  # [features] or None, as weight and norm_bias
    residual,
    seed,  # int64, one, or None
    weight,
    norm_bias,
    y,
    h,
    mean,  # float32 [rows]; none of it is written for rms
    rstd,  # float32 [rows]
    rows,
    features,
    threshold,
    scale,
    eps,
    ACTIVATION: tl.constexpr,
    RMS: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C)
    inside = column < features
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * features + column[None, :]
    z = widen(tl.load(x + at, mask, 0.0))
    if bias is not None:
        z += widen(tl.load(bias + column, inside, 0.0))[None, :]
    v = activate(z, ACTIVATION) * scale
    other = tl.zeros((R, C), tl.float32)
    if residual is not None:
        other = widen(tl.load(residual + at, mask, 0.0))
        v += other
    if seed is not None:
        v = tl.where(kept(tl.load(seed), row * features, threshold, R, C, ALIGNED), v, other)
    rounded = round_to(v, h.dtype.element_ty)
    tl.store(h + at, rounded, mask)
    v = tl.where(mask, widen(rounded), 0.0)
    if not RMS:
        centre = tl.div_rn(tl.sum(v, 1), (row * 0 + features).to(tl.float32))
        tl.store(mean + row, centre, row < rows)
        v = tl.where(mask, v - centre[:, None], 0.0)
    variance = tl.div_rn(tl.sum(v * v, 1), (row * 0 + features).to(tl.float32))
    scaled = tl.div_rn(tl.full((R,), 1.0, tl.float32), tl.sqrt_rn(variance + eps))
    tl.store(rstd + row, scaled, row < rows)
    v = v * scaled[:, None]
    if weight is not None:
        v *= widen(tl.load(weight + column, inside, 0.0))[None, :]
    if norm_bias is not None:
        v += widen(tl.load(norm_bias + column, inside, 0.0))[None, :]
    tl.store(y + at, round_to(v, y.dtype.element_ty), mask)


@triton.jit
def norm_backward_kernel(
    grad_y,  # [rows, features], as grad_h, h, x, dx and dh
    grad_h,  # may be None: zero
    h,
    mean,  # float32 [rows]; not read for rms
    rstd,  # float32 [rows]
    x,
    bias,  # [features] or None, as weight
    seed,  # int64, one, or None
    weight,
    dx,
    dh,
    sums,  # float32 [programs, 2 or 3, features]
    rows,
    features,
    threshold,
    scale,
    ACTIVATION: tl.constexpr,
    RMS: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    column = tl.arange(0, C)
    inside = column < features
    weight_sum = tl.zeros((R, C), tl.float32)
    norm_bias_sum = tl.zeros((R, C), tl.float32)
    bias_sum = tl.zeros((R, C), tl.float32)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = tl.arange(0, R).to(tl.int64) + first
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * features + column[None, :]
        normal = widen(tl.load(h + at, mask, 0.0))
        if not RMS:
            normal -= tl.load(mean + row, row < rows, 0.0)[:, None]
        scaled = tl.load(rstd + row, row < rows, 0.0)
        normal = tl.where(mask, normal * scaled[:, None], 0.0)
        dy = widen(tl.load(grad_y + at, mask, 0.0))
        weight_sum += dy * normal
        norm_bias_sum += dy
        g = dy
        if weight is not None:
            g = dy * widen(tl.load(weight + column, inside, 0.0))[None, :]
        count = (row * 0 + features).to(tl.float32)
        v = g - normal * tl.div_rn(tl.sum(g * normal, 1), count)[:, None]
        if not RMS:
            v -= tl.div_rn(tl.sum(g, 1), count)[:, None]
        v = v * scaled[:, None]
        if grad_h is not None:
            v += widen(tl.load(grad_h + at, mask, 0.0))
        rounded = round_to(v, dh.dtype.element_ty)
        tl.store(dh + at, rounded, mask)
        z = widen(tl.load(x + at, mask, 0.0))
        if bias is not None:
            z += widen(tl.load(bias + column, inside, 0.0))[None, :]
        v = widen(rounded) * slope(z, ACTIVATION) * scale
        if seed is not None:
            v = tl.where(kept(tl.load(seed), row * features, threshold, R, C, ALIGNED), v, 0.0)
        result = round_to(v, dx.dtype.element_ty)
        tl.store(dx + at, result, mask)
        if bias is not None:
            bias_sum += tl.where(mask, widen(result), 0.0)
    planes = 2 if bias is None else 3
    to = sums + tl.program_id(0).to(tl.int64) * planes * features + column
    tl.store(to, tl.sum(weight_sum, 0), inside)
    tl.store(to + features, tl.sum(norm_bias_sum, 0), inside)
    if bias is not None:
        tl.store(to + 2 * features, tl.sum(bias_sum, 0), inside)


def configs(features: int) -> list[Config]:
    columns = power_of_2(features, 16)
    if interpreted():
        return [Config({"R": max(1, 2048 // columns), "C": columns}, 4, 1)]
    rows = max(1, 1024 // columns)
    fewest = max(4, columns // 512)
    return [Config({"R": rows, "C": columns}, warps, 1) for warps in dict.fromkeys((fewest, min(16, 2 * fewest)))]


def _arguments(x: Tensor, seed: Tensor | None, p: float, activation: str, norm: str) -> dict[str, Any]:
    features = x.shape[-1]
    return {
        "rows": x.numel() // features, "features": features, **mask_arguments(p, seed), "ACTIVATION": activation,
        "RMS": norm == "rms", "ALIGNED": features % 8 == 0,
    }  # fmt: skip


def forward(
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
    """All contiguous; bias, weight and norm_bias float32, bfloat16 or float16."""
    y, h = torch.empty_like(x), torch.empty_like(x)
    features = x.shape[-1]
    rows = x.numel() // features
    mean = torch.empty(rows if norm == "layer" else 0, dtype=torch.float32, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    args = {
        "x": x, "bias": bias, "residual": residual, "weight": weight, "norm_bias": norm_bias, "y": y, "h": h,
        "mean": mean, "rstd": rstd, "eps": eps, **_arguments(x, seed, p, activation, norm),
    }  # fmt: skip
    if rows:
        launch(
            norm_kernel,
            lambda c: (triton.cdiv(rows, c["R"]),),
            args,
            configs(features),
            (x.dtype, power_of_2(rows), features, activation, norm),
        )
    return y, h, mean, rstd


def backward(
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
    """All contiguous; the third result is float32 [2 or 3, features]."""
    dx, dh = torch.empty_like(x), torch.empty_like(x)
    features, planes = x.shape[-1], 2 if bias is None else 3
    rows = x.numel() // features
    if rows == 0:
        return dx, dh, torch.zeros((planes, features), dtype=torch.float32, device=x.device)
    found = configs(features)
    programs = max(1, min(256, triton.cdiv(rows, 4 * found[0].constants["R"])))
    sums = torch.empty((programs, planes, features), dtype=torch.float32, device=x.device)
    args = {
        "grad_y": grad_y, "grad_h": grad_h, "h": h, "mean": mean, "rstd": rstd, "x": x, "bias": bias,
        "weight": weight, "dx": dx, "dh": dh, "sums": sums, **_arguments(x, seed, p, activation, norm),
    }  # fmt: skip
    launch(
        norm_backward_kernel,
        lambda c: (programs,),
        args,
        found,
        (x.dtype, power_of_2(rows), features, activation, norm),
    )
    return dx, dh, sums.sum(0)
