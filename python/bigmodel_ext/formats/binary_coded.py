"""Binary-coded weights: a sum of a few planes of signs, each scaled per output and group of inputs,

``W[n,k] = sum_b alpha[n, k // group_size, b] * s[n,b,k]``, ``s`` in {-1, +1}.

Canonical are ``signs`` uint8 [N, bits, ceil(K/8)] (bit i of byte j is the sign of input 8j + i, 1 for +1; bits beyond K
do not matter) and ``alpha`` float16 [N, G, bits] with G = ceil(K/group_size); bits is 1 to 8, group_size a multiple of
8. Kernels read both in panels of 64 outputs, in the order in which they use them: signs as ``packed`` uint8
[ceil(N/64), words, bits, 64, 2], word w of a group holding its inputs 16w to 16w + 15 in two bytes (every group begins
with a word of its own, so a group_size that is an odd multiple of 8 leaves half a word unused), and alpha as ``scales``
float16 [ceil(N/64), G, bits, 64]. Outputs that pad the last panel have scale 0.

The code is that of Xu et al., "Alternating Multi-bit Quantization for Recurrent Neural Networks" (2018), with groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._checks import BINARY_TILE_N
from bigmodel_ext._checks import binary_words as binary_words
from bigmodel_ext._checks import require_binary_code as require_binary_code
from bigmodel_ext._native import new_weight
from bigmodel_ext._reference import (
    binary_alpha,
    binary_byte_places,
    binary_decode,
    binary_scales,
    binary_signs,
    binary_spins,
)


def pack(spins: Tensor) -> Tensor:
    """int8 [N, bits, K] of -1 and +1 -> signs uint8 [N, bits, ceil(K/8)]; bits beyond K are 0.

    Raises:
        TypeError: spins is not int8 with 3 dimensions.
        ValueError: a value is neither -1 nor +1.
    """
    if spins.dtype != torch.int8 or spins.dim() != 3:
        raise TypeError(f"spins must be int8 [N, bits, K], got {spins.dtype} {list(spins.shape)}")
    wrong = spins.abs() != 1
    if not spins.is_meta and bool(wrong.any()):
        raise ValueError(f"spins must be -1 or +1, got {int(spins[wrong][0])}")
    n, bits, k = spins.shape
    ones = torch.nn.functional.pad((spins > 0).to(torch.uint8), (0, -k % 8)).view(n, bits, -(-k // 8), 8)
    return (ones << torch.arange(8, dtype=torch.uint8, device=spins.device)).sum(-1, dtype=torch.uint8)


def unpack(signs: Tensor, in_features: int) -> Tensor:
    """The inverse of :func:`pack`: int8 [N, bits, K]."""
    return binary_spins(signs, in_features)


def decode(signs: Tensor, alpha: Tensor, in_features: int, group_size: int) -> Tensor:
    """The weight: float32 [N,K], planes added in their order."""
    return binary_decode(signs, alpha, in_features, group_size)


def to_panels(signs: Tensor, in_features: int, group_size: int) -> Tensor:
    """signs uint8 [N, bits, ceil(K/8)] -> packed uint8 [ceil(N/64), words, bits, 64, 2].

    Raises:
        TypeError: signs is not uint8 with 3 dimensions.
        ValueError: bits, group_size or the last dimension is wrong.
    """
    if signs.dtype != torch.uint8 or signs.dim() != 3:
        raise TypeError(f"signs must be uint8 [N, bits, ceil(K/8)], got {signs.dtype} {list(signs.shape)}")
    n, bits, count = signs.shape
    require_binary_code(bits, group_size)
    if count != -(-in_features // 8):
        raise ValueError(f"signs of {in_features} inputs must have {-(-in_features // 8)} bytes a row, got {count}")
    panels, words = -(-n // BINARY_TILE_N), binary_words(in_features, group_size)
    rows = signs.new_zeros((panels * BINARY_TILE_N, bits, 2 * words))
    rows[:n, :, binary_byte_places(in_features, group_size, signs.device)] = signs
    packed = new_weight(rows, (panels, words, bits, BINARY_TILE_N, 2))
    return packed.copy_(rows.view(panels, BINARY_TILE_N, bits, words, 2).permute(0, 3, 2, 1, 4))


def from_panels(packed: Tensor, out_features: int, in_features: int, group_size: int) -> Tensor:
    """The inverse of :func:`to_panels`: uint8 [N, bits, ceil(K/8)]."""
    return binary_signs(packed, out_features, in_features, group_size).contiguous()


def scales_to_panels(alpha: Tensor) -> Tensor:
    """alpha [N, G, bits] -> scales [ceil(N/64), G, bits, 64] of the same dtype; differentiable."""
    if alpha.dim() != 3:
        raise ValueError(f"alpha must be [N, G, bits], got shape {list(alpha.shape)}")
    return binary_scales(alpha, BINARY_TILE_N)


def scales_from_panels(scales: Tensor, out_features: int) -> Tensor:
    """The inverse of :func:`scales_to_panels`: [N, G, bits]."""
    return binary_alpha(scales, out_features).contiguous()
