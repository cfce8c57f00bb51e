"""Binary-coded linear layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_ext._reference.dropout import activate
from bigmodel_ext._reference.int8 import quantize_rows


def binary_byte_places(k: int, group_size: int, device: torch.device) -> Tensor:
    """Of each byte of canonical signs, [ceil(K/8)]: where it is among a row's packed bytes. Groups of an odd number of
    bytes are followed by an unused one there."""
    bytes_of_group = group_size // 8
    j = torch.arange(-(-k // 8), device=device)
    return j // bytes_of_group * (2 * -(-group_size // 16)) + j % bytes_of_group


def binary_signs(packed: Tensor, n: int, k: int, group_size: int) -> Tensor:
    """uint8 [ceil(N/64), words, bits, 64, 2] -> uint8 [N, bits, ceil(K/8)]."""
    panels, words, bits, tile, _ = packed.shape
    rows = packed.permute(0, 3, 2, 1, 4).reshape(panels * tile, bits, 2 * words)[:n]
    return rows[..., binary_byte_places(k, group_size, rows.device)]


def binary_alpha(scales: Tensor, n: int) -> Tensor:
    """[ceil(N/64), G, bits, 64] -> [N, G, bits]."""
    panels, groups, bits, tile = scales.shape
    return scales.permute(0, 3, 1, 2).reshape(panels * tile, groups, bits)[:n]


def binary_scales(alpha: Tensor, tile: int = 64) -> Tensor:
    """[N, G, bits] -> [ceil(N/64), G, bits, 64], zero-padded."""
    n, groups, bits = alpha.shape
    panels = -(-n // tile)
    padded = torch.nn.functional.pad(alpha, (0, 0, 0, 0, 0, panels * tile - n))
    return padded.reshape(panels, tile, groups, bits).permute(0, 2, 3, 1).contiguous()


def binary_spins(signs: Tensor, k: int) -> Tensor:
    """uint8 [N, bits, ceil(K/8)] -> int8 [N, bits, K] of -1 and +1."""
    bit = torch.arange(8, dtype=torch.uint8, device=signs.device)
    ones = (signs[..., None] >> bit) & 1
    return ones.flatten(-2)[..., :k].to(torch.int8) * 2 - 1


def binary_decode(signs: Tensor, alpha: Tensor, k: int, group_size: int) -> Tensor:
    """float32 [N,K]: sum_b alpha[n, k // group_size, b] * s[n,b,k], added in the order of b."""
    weight = torch.zeros((signs.shape[0], k), dtype=torch.float32, device=signs.device)
    for b in range(signs.shape[1]):
        scale = alpha[:, :, b].float().repeat_interleave(group_size, 1)[:, :k]
        weight += scale * binary_spins(signs[:, b : b + 1], k)[:, 0]
    return weight


def binary_coded_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    n, k = out_features, x.shape[-1]
    q, x_scale = quantize_rows(x.reshape(math.prod(x.shape[:-1]), k))
    alpha = binary_alpha(scales, n).float()
    spins, q = binary_spins(binary_signs(packed, n, k, group_size), k).double(), q.double()
    z = torch.zeros((q.shape[0], n), dtype=torch.float32, device=x.device)
    for g in range(alpha.shape[1]):
        part = slice(g * group_size, (g + 1) * group_size)
        for b in range(alpha.shape[2]):
            sums = q[:, part] @ spins[:, b, part].T  # integers below 2^24: exact, in float32 too
            z = z + sums.float() * alpha[:, g, b]
    y = z * x_scale[:, None]
    if bias is not None:
        y = y + bias.float()
    return activate(y, activation).to(x.dtype).reshape(*x.shape[:-1], n)
