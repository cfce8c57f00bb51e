"""Linear layers with weights in square blocks, and with two of every four."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_ext._reference.int8 import int8_linear


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    m, n, k = math.prod(x.shape[:-1]), grad.shape[-1], x.shape[-1]
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.reshape(m, n).to(wide).T @ x.reshape(m, k).to(wide)


def block_rows(crow: Tensor) -> Tensor:
    """The block row (int64) of every stored block."""
    counts = crow.diff().long()
    return torch.repeat_interleave(torch.arange(counts.shape[0], device=crow.device), counts)


def cut_into_blocks(dense: Tensor, size: int) -> Tensor:
    """[N,K] -> [ceil(N/size), ceil(K/size), size (of K), size (of N)], zero-padded."""
    n, k = dense.shape
    rows, columns = -(-n // size), -(-k // size)
    padded = F.pad(dense, (0, columns * size - k, 0, rows * size - n))
    return padded.view(rows, size, columns, size).permute(0, 2, 3, 1)


def blocks_to_dense(values: Tensor, crow: Tensor, col: Tensor, n: int, k: int) -> Tensor:
    size = values.shape[1]
    rows, columns = crow.shape[0] - 1, -(-k // size)
    blocks = values.new_zeros((rows, columns, size, size))
    blocks = blocks.index_put((block_rows(crow), col.long()), values, accumulate=True)
    return blocks.permute(0, 3, 1, 2).reshape(rows * size, columns * size)[:n, :k]


def block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    return _linear(x, blocks_to_dense(values, crow, col, out_features, x.shape[-1]), bias)


def block_sparse_linear_grad_input(grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, in_features: int) -> Tensor:
    weight = blocks_to_dense(values, crow, col, grad.shape[-1], in_features)
    return (grad.to(weight.dtype) @ weight).to(grad.dtype)


def block_sparse_linear_grad_values(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, blocksize: int) -> Tensor:
    blocks = cut_into_blocks(_weight_gradient(grad, x), blocksize)
    return blocks[block_rows(crow), col.long()].to(grad.dtype)


def semi_positions(index: Tensor) -> Tensor:
    """uint8 [rows, columns, 32, 4] -> int64 [rows, columns, 8, 2, 32]: positions within the groups of four, as values
    lie (see formats.two_four)."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=index.device)
    positions = (index[..., None] >> shifts & 3).flatten(-2).unflatten(-1, (8, 2))
    return positions.permute(0, 1, 3, 4, 2).long()


def semi_to_dense(values: Tensor, index: Tensor, n: int, k: int) -> Tensor:
    rows, columns, groups, _, tile = values.shape
    dense = values.new_zeros((rows, columns, groups, 4, tile)).scatter(3, semi_positions(index), values)
    return dense.permute(0, 4, 1, 2, 3).reshape(rows * tile, columns * groups * 4)[:n, :k]


def semi_sparse_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return _linear(x, semi_to_dense(values, index, out_features, x.shape[-1]), bias)


def semi_sparse_linear_grad_input(grad: Tensor, values: Tensor, index: Tensor, in_features: int) -> Tensor:
    weight = semi_to_dense(values, index, grad.shape[-1], in_features)
    return (grad.to(weight.dtype) @ weight).to(grad.dtype)


def semi_sparse_linear_grad_values(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    groups = cut_into_blocks(_weight_gradient(grad, x), 32).unflatten(2, (8, 4))
    return groups.gather(3, semi_positions(index)).to(grad.dtype)


def int8_semi_to_dense(values: Tensor, index: Tensor, n: int, k: int) -> Tensor:
    """int8 [rows, columns, 32, 16], an output's stored weights side by side -> [N,K]."""
    return semi_to_dense(values.unflatten(3, (8, 2)).permute(0, 1, 3, 4, 2), index, n, k)


def int8_semi_sparse_linear(
    x: Tensor, values: Tensor, index: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    weight = int8_semi_to_dense(values, index, weight_scale.shape[0], x.shape[-1])
    return int8_linear(x, weight, weight_scale, bias, activation)
