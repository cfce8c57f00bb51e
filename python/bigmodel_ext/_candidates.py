"""The tables of conversion: for each config and each class of dense layer, what may take the layer's place.

A maker gets the layer and the config and returns the candidates, each ready to stand in, the one preferred without
measuring first; or a string that says why there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bigmodel_ext._configs import (
    BlockSparseWeightConfig,
    Int8BlockSparseWeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    SemiSparseWeightConfig,
    UnstructuredSparseWeightConfig,
)
from bigmodel_ext._masks import block_mask, magnitude_mask, square_block_mask, two_four_mask
from bigmodel_ext._surgery import nbytes
from bigmodel_ext.formats import csr, two_four
from bigmodel_ext.nn import (
    BlockSparseLinear,
    Int8Conv2d,
    Int8Linear,
    Int8SparseLinear,
    SemiSparseLinear,
    SparseConv2d,
    SparseLinear,
)

Made = list[nn.Module] | str
Maker = Callable[[Any, Any], Made]


def _int8_linear(linear: nn.Linear, config: Int8DynamicActivationInt8WeightConfig) -> Made:
    return [Int8Linear.from_float(linear, weight_scales=config.weight_scales)]


def _sparse(dense: Any, config: UnstructuredSparseWeightConfig) -> Made:
    kind = SparseConv2d if isinstance(dense, nn.Conv2d) else SparseLinear
    mask = None if config.sparsity is None else magnitude_mask(dense.weight, config.sparsity)
    layer = kind.from_dense(dense, mask)
    if mask is None and nbytes(layer) >= nbytes(dense):
        return f"it would not get smaller ({layer.nnz} of {dense.weight.numel()} weights are not zero)"
    if not config.rows or layer.columns <= csr.PANEL:
        return [layer]
    other = csr.PANEL if layer.panel == csr.WIDE_PANEL else csr.WIDE_PANEL  # up to 1.4 times as fast at some rows
    return [layer, kind.from_dense(dense, mask, panel=other)]


def _int8_conv2d(conv: nn.Conv2d, config: Int8DynamicActivationInt8WeightConfig) -> Made:
    return [Int8Conv2d.from_float(conv, config.weight_scales)]


def _linear_only(conv: nn.Conv2d, config: object) -> Made:
    return "blocks are implemented for linear layers only"


def _int8_sparse_linear(linear: nn.Linear, config: Int8BlockSparseWeightConfig) -> Made:
    mask = None if config.sparsity is None else block_mask(linear.weight, config.sparsity)
    return [Int8SparseLinear.from_dense(linear, mask)]


def _square_blocks(linear: nn.Linear, config: BlockSparseWeightConfig) -> Made:
    size = config.blocksize
    mask = None if config.sparsity is None else square_block_mask(linear.weight, config.sparsity, size)
    layer = BlockSparseLinear.from_dense(linear, mask, size)
    if mask is None and nbytes(layer) >= nbytes(linear):
        blocks = -(-linear.out_features // size) * -(-linear.in_features // size)
        return f"it would not get smaller ({layer.col.shape[0]} of {blocks} blocks of {size} are not zero)"
    return [layer]


def _two_four(linear: nn.Linear, config: SemiSparseWeightConfig) -> Made:
    if config.prune:
        return [SemiSparseLinear.from_dense(linear, two_four_mask(linear.weight))]
    problem = two_four.violation(linear.weight.detach() != 0)
    return [SemiSparseLinear.from_dense(linear)] if problem is None else f"its weight is not 2:4: {problem}"


QUANTIZE: dict[type, dict[type[nn.Module], Maker]] = {
    Int8DynamicActivationInt8WeightConfig: {nn.Linear: _int8_linear, nn.Conv2d: _int8_conv2d},
}
SPARSIFY: dict[type, dict[type[nn.Module], Maker]] = {
    UnstructuredSparseWeightConfig: {nn.Linear: _sparse, nn.Conv2d: _sparse},
    Int8BlockSparseWeightConfig: {nn.Linear: _int8_sparse_linear, nn.Conv2d: _linear_only},
    BlockSparseWeightConfig: {nn.Linear: _square_blocks, nn.Conv2d: _linear_only},
    SemiSparseWeightConfig: {nn.Linear: _two_four, nn.Conv2d: _linear_only},
}
