"""CPU kernels: allocate the output, call the compiled kernel. Checks are in C++, before memory is touched, and so
are copies of strided inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext import _dispatch
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext.backends.cpu import binary_coded, blocks, conv, dropout, int8, ising, sparse


def _double(x: Tensor) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


_dispatch.register(
    "cpu",
    {
        "quantize_rows": Candidate("cpu", int8.quantize_rows),
        "int8_mm": Candidate("cpu", int8.int8_mm),
        "int8_linear": Candidate("cpu", int8.int8_linear),
        "binary_coded_linear": Candidate("cpu", binary_coded.binary_coded_linear),
        "int8_weight_only_linear": Candidate("cpu", int8.int8_weight_only_linear),
        "int8_conv2d": Candidate("cpu", conv.int8_conv2d),
        "int8_sparse_linear": Candidate("cpu", sparse.int8_sparse_linear),
        "sparse_conv2d": Candidate("cpu", conv.sparse_conv2d, _double),
        "pack_panel_csr": Candidate("cpu", sparse.pack_panel_csr),
        "sparse_linear": Candidate("cpu", sparse.sparse_linear, _double),
        "sparse_linear_grad_input": Candidate("cpu", sparse.sparse_linear_grad_input, _double),
        "sparse_linear_grad_values": Candidate("cpu", sparse.sparse_linear_grad_values, _double),
        "block_sparse_linear": Candidate("cpu", blocks.block_sparse_linear, _double),
        "block_sparse_linear_grad_input": Candidate("cpu", blocks.block_sparse_linear_grad_input, _double),
        "block_sparse_linear_grad_values": Candidate("cpu", blocks.block_sparse_linear_grad_values, _double),
        "semi_sparse_linear": Candidate("cpu", blocks.semi_sparse_linear, _double),
        "semi_sparse_linear_grad_input": Candidate("cpu", blocks.semi_sparse_linear_grad_input, _double),
        "semi_sparse_linear_grad_values": Candidate("cpu", blocks.semi_sparse_linear_grad_values, _double),
        "int8_semi_sparse_linear": Candidate("cpu", blocks.int8_semi_sparse_linear),
        "ising_start": Candidate("cpu", ising.ising_start),
        "ising_descend": Candidate("cpu", ising.ising_descend),
        "fused_dropout": Candidate("cpu", dropout.fused_dropout, _double),
        "fused_dropout_backward": Candidate("cpu", dropout.fused_dropout_backward, _double),
        "fused_dropout_backward_bias": Candidate("cpu", dropout.fused_dropout_backward_bias, _double),
        "fused_dropout_norm": Candidate("cpu", dropout.fused_dropout_norm, _double),
        "fused_dropout_norm_backward": Candidate("cpu", dropout.fused_dropout_norm_backward, _double),
    },
)
