"""Every op in plain PyTorch: what runs where no kernel does, and what kernels are tested against. Clear, not fast."""

from bigmodel_ext._reference.conv import channels_last as channels_last
from bigmodel_ext._reference.conv import conv_rows as conv_rows
from bigmodel_ext._reference.conv import int8_conv2d as int8_conv2d
from bigmodel_ext._reference.conv import unpack_int8_conv as unpack_int8_conv
from bigmodel_ext._reference.dropout import activate as activate
from bigmodel_ext._reference.dropout import activation_slope as activation_slope
from bigmodel_ext._reference.dropout import dropout_keep as dropout_keep
from bigmodel_ext._reference.dropout import dropout_scale as dropout_scale
from bigmodel_ext._reference.dropout import dropout_seed as dropout_seed
from bigmodel_ext._reference.dropout import dropout_threshold as dropout_threshold
from bigmodel_ext._reference.dropout import fused_dropout as fused_dropout
from bigmodel_ext._reference.dropout import fused_dropout_backward as fused_dropout_backward
from bigmodel_ext._reference.dropout import philox_4x32 as philox_4x32
from bigmodel_ext._reference.int8 import SMALLEST_QUANTIZABLE as SMALLEST_QUANTIZABLE
from bigmodel_ext._reference.int8 import int8_linear as int8_linear
from bigmodel_ext._reference.int8 import int8_mm as int8_mm
from bigmodel_ext._reference.int8 import quantize_rows as quantize_rows
from bigmodel_ext._reference.int8 import unpack_int8 as unpack_int8
from bigmodel_ext._reference.sparse import int8_sparse_linear as int8_sparse_linear
from bigmodel_ext._reference.sparse import panel_rows_columns as panel_rows_columns
from bigmodel_ext._reference.sparse import sparse_linear as sparse_linear
from bigmodel_ext._reference.sparse import sparse_linear_grad_input as sparse_linear_grad_input
from bigmodel_ext._reference.sparse import sparse_linear_grad_values as sparse_linear_grad_values
from bigmodel_ext._reference.sparse import sparse_to_dense as sparse_to_dense
