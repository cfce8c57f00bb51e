"""Layers that take the place of nn.Linear, nn.Conv2d and nn.Dropout. Each subclasses what it replaces, keeps its
attributes and holds plain parameters and buffers, so saving, copying, DDP and FSDP treat it like any other module."""

from bigmodel_ext.nn.binary_coded_linear import BinaryCodedLinear
from bigmodel_ext.nn.block_sparse_linear import BlockSparseLinear
from bigmodel_ext.nn.fused_dropout import Absorbed, FusedDropout
from bigmodel_ext.nn.fused_dropout_norm import FusedDropoutNorm
from bigmodel_ext.nn.int8_conv2d import Int8Conv2d
from bigmodel_ext.nn.int8_linear import Int8Linear
from bigmodel_ext.nn.int8_semi_sparse_linear import Int8SemiSparseLinear
from bigmodel_ext.nn.int8_sparse_linear import Int8SparseLinear
from bigmodel_ext.nn.int8_weight_only_linear import Int8WeightOnlyLinear
from bigmodel_ext.nn.semi_sparse_linear import SemiSparseLinear
from bigmodel_ext.nn.sparse_conv2d import SparseConv2d
from bigmodel_ext.nn.sparse_linear import SparseLinear

__all__ = [
    "Absorbed",
    "BinaryCodedLinear",
    "BlockSparseLinear",
    "FusedDropout",
    "FusedDropoutNorm",
    "Int8Conv2d",
    "Int8Linear",
    "Int8SemiSparseLinear",
    "Int8SparseLinear",
    "Int8WeightOnlyLinear",
    "SemiSparseLinear",
    "SparseConv2d",
    "SparseLinear",
]
