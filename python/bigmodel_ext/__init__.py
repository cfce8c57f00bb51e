"""Compressed PyTorch models that are measurably smaller and faster."""

from bigmodel_ext import functional as functional
from bigmodel_ext import nn as nn
from bigmodel_ext.checkpoint import load_model as load_model
from bigmodel_ext.checkpoint import save_model as save_model
from bigmodel_ext.convert import BlockSparseWeightConfig as BlockSparseWeightConfig
from bigmodel_ext.convert import Explanation as Explanation
from bigmodel_ext.convert import Int8BlockSparseWeightConfig as Int8BlockSparseWeightConfig
from bigmodel_ext.convert import Int8DynamicActivationInt8WeightConfig as Int8DynamicActivationInt8WeightConfig
from bigmodel_ext.convert import LayerReport as LayerReport
from bigmodel_ext.convert import SemiSparseWeightConfig as SemiSparseWeightConfig
from bigmodel_ext.convert import UnstructuredSparseWeightConfig as UnstructuredSparseWeightConfig
from bigmodel_ext.convert import explain as explain
from bigmodel_ext.convert import fuse_activation_ as fuse_activation_
from bigmodel_ext.convert import fuse_dropout_ as fuse_dropout_
from bigmodel_ext.convert import quantize_ as quantize_
from bigmodel_ext.convert import sparsify_ as sparsify_

__version__ = "0.1.0"
