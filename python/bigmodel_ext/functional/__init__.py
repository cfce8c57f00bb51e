"""The ops as functions, with defaults and argument conversion. See ``torch.ops.bigmodel_ext`` for the raw ops."""

from bigmodel_ext._checks import ACTIVATIONS as ACTIVATIONS
from bigmodel_ext._checks import INT8_MAX_K as INT8_MAX_K
from bigmodel_ext._checks import NORMS as NORMS
from bigmodel_ext.functional._binary_coded import binary_coded_linear as binary_coded_linear
from bigmodel_ext.functional._blocks import block_sparse_linear as block_sparse_linear
from bigmodel_ext.functional._blocks import int8_semi_sparse_linear as int8_semi_sparse_linear
from bigmodel_ext.functional._blocks import semi_sparse_linear as semi_sparse_linear
from bigmodel_ext.functional._conv import int8_conv2d as int8_conv2d
from bigmodel_ext.functional._conv import sparse_conv2d as sparse_conv2d
from bigmodel_ext.functional._dropout import fused_dropout as fused_dropout
from bigmodel_ext.functional._dropout import fused_dropout_norm as fused_dropout_norm
from bigmodel_ext.functional._int8 import int8_linear as int8_linear
from bigmodel_ext.functional._int8 import int8_mm as int8_mm
from bigmodel_ext.functional._int8 import int8_weight_only_linear as int8_weight_only_linear
from bigmodel_ext.functional._int8 import quantize_rows as quantize_rows
from bigmodel_ext.functional._ising import ising_decode as ising_decode
from bigmodel_ext.functional._ising import ising_descend as ising_descend
from bigmodel_ext.functional._ising import ising_start as ising_start
from bigmodel_ext.functional._sparse import int8_sparse_linear as int8_sparse_linear
from bigmodel_ext.functional._sparse import sparse_linear as sparse_linear
