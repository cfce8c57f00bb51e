"""Every op's argument check: what it takes, and the error for anything else.

A check serves the op's fake (so that ``torch.compile`` and ``meta`` tensors see the same errors) and its reference; the
compiled kernels repeat it in C++ before they touch memory. Dimensions: M rows of activations, N outputs, K inputs.
"""

from bigmodel_ext._checks._common import ACTIVATIONS as ACTIVATIONS
from bigmodel_ext._checks._common import FLOATS as FLOATS
from bigmodel_ext._checks._common import require as require
from bigmodel_ext._checks.binary_coded import BINARY_MAX_BITS as BINARY_MAX_BITS
from bigmodel_ext._checks.binary_coded import BINARY_TILE_N as BINARY_TILE_N
from bigmodel_ext._checks.binary_coded import binary_words as binary_words
from bigmodel_ext._checks.binary_coded import check_binary_coded_linear as check_binary_coded_linear
from bigmodel_ext._checks.binary_coded import require_binary_code as require_binary_code
from bigmodel_ext._checks.blocks import BLOCK_SIZES as BLOCK_SIZES
from bigmodel_ext._checks.blocks import check_block_sparse_linear as check_block_sparse_linear
from bigmodel_ext._checks.blocks import check_block_sparse_linear_grad_input as check_block_sparse_linear_grad_input
from bigmodel_ext._checks.blocks import check_block_sparse_linear_grad_values as check_block_sparse_linear_grad_values
from bigmodel_ext._checks.blocks import check_int8_semi_sparse_linear as check_int8_semi_sparse_linear
from bigmodel_ext._checks.blocks import check_semi_sparse_linear as check_semi_sparse_linear
from bigmodel_ext._checks.blocks import check_semi_sparse_linear_grad_input as check_semi_sparse_linear_grad_input
from bigmodel_ext._checks.blocks import check_semi_sparse_linear_grad_values as check_semi_sparse_linear_grad_values
from bigmodel_ext._checks.conv import check_int8_conv2d as check_int8_conv2d
from bigmodel_ext._checks.conv import check_sparse_conv2d as check_sparse_conv2d
from bigmodel_ext._checks.conv import conv2d_shape as conv2d_shape
from bigmodel_ext._checks.dropout import NORMS as NORMS
from bigmodel_ext._checks.dropout import check_dropout_seed as check_dropout_seed
from bigmodel_ext._checks.dropout import check_fused_dropout as check_fused_dropout
from bigmodel_ext._checks.dropout import check_fused_dropout_backward as check_fused_dropout_backward
from bigmodel_ext._checks.dropout import check_fused_dropout_norm as check_fused_dropout_norm
from bigmodel_ext._checks.dropout import check_fused_dropout_norm_backward as check_fused_dropout_norm_backward
from bigmodel_ext._checks.int8 import INT8_MAX_K as INT8_MAX_K
from bigmodel_ext._checks.int8 import INT8_TILE_N as INT8_TILE_N
from bigmodel_ext._checks.int8 import check_int8_linear as check_int8_linear
from bigmodel_ext._checks.int8 import check_int8_mm as check_int8_mm
from bigmodel_ext._checks.int8 import check_int8_weight_only_linear as check_int8_weight_only_linear
from bigmodel_ext._checks.int8 import check_quantize_rows as check_quantize_rows
from bigmodel_ext._checks.ising import check_ising_descend as check_ising_descend
from bigmodel_ext._checks.ising import check_ising_start as check_ising_start
from bigmodel_ext._checks.sparse import check_int8_sparse_linear as check_int8_sparse_linear
from bigmodel_ext._checks.sparse import check_pack_panel_csr as check_pack_panel_csr
from bigmodel_ext._checks.sparse import check_sparse_linear as check_sparse_linear
from bigmodel_ext._checks.sparse import check_sparse_linear_grad_input as check_sparse_linear_grad_input
from bigmodel_ext._checks.sparse import check_sparse_linear_grad_values as check_sparse_linear_grad_values
