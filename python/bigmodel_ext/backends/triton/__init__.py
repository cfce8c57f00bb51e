"""Triton kernels: behind the CUDA ones on NVIDIA's devices, and first on AMD's. Under TRITON_INTERPRET=1 a forced
BIGMODEL_BACKEND=triton runs them on CPU tensors, in Triton's interpreter. Triton is imported when the first one runs.

Arguments are checked here, in Python. The contents of index tensors are not, because that would wait for the device:
kernels keep within what was passed, whatever the indices say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _dispatch, _ops
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext.backends.triton import binary_coded, blocks, dropout, int8, sparse


def _double(x: Tensor) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


def _candidate(name: str, run: Callable[..., Any], refusal: Callable[[Tensor], str | None] = _double) -> Candidate:
    check = _ops.OPS[name][1]

    def checked(x: Tensor, *args: Any) -> Any:
        check(x, *args)
        if refusal(x) is not None:
            return _dispatch.fall_back(name, x, *args)
        return run(x, *args)

    return Candidate("triton", checked, refusal)


def _row_too_long(x: Tensor) -> str | None:
    longest = dropout.LONGEST_NORM
    if x.shape[-1] > longest:
        return f"rows of more than {longest} features are computed by the reference"
    return _double(x)


def _register(device: str) -> None:
    kernels: dict[str, tuple[Any, ...]] = {
        "quantize_rows": (int8.quantize_rows,),
        "int8_mm": (int8.int8_mm,),
        "int8_linear": (int8.int8_linear,),
        "int8_weight_only_linear": (int8.int8_weight_only_linear,),
        "int8_sparse_linear": (sparse.int8_sparse_linear,),
        "binary_coded_linear": (binary_coded.binary_coded_linear,),
        "sparse_linear": (sparse.sparse_linear,),
        "sparse_linear_grad_input": (sparse.sparse_linear_grad_input,),
        "sparse_linear_grad_values": (sparse.sparse_linear_grad_values,),
        "block_sparse_linear": (blocks.block_sparse_linear,),
        "block_sparse_linear_grad_input": (blocks.block_sparse_linear_grad_input,),
        "block_sparse_linear_grad_values": (blocks.block_sparse_linear_grad_values,),
        "semi_sparse_linear": (blocks.semi_sparse_linear,),
        "semi_sparse_linear_grad_input": (blocks.semi_sparse_linear_grad_input,),
        "semi_sparse_linear_grad_values": (blocks.semi_sparse_linear_grad_values,),
        "fused_dropout": (dropout.fused_dropout,),
        "fused_dropout_backward": (dropout.fused_dropout_backward,),
        "fused_dropout_backward_bias": (dropout.fused_dropout_backward_bias,),
        "fused_dropout_norm": (dropout.fused_dropout_norm, _row_too_long),
        "fused_dropout_norm_backward": (dropout.fused_dropout_norm_backward, _row_too_long),
    }
    _dispatch.register(device, {name: _candidate(name, *rest) for name, rest in kernels.items()})


if _dispatch.why_no_triton() is None:
    if torch.cuda.is_available():
        _register("cuda")
    elif _dispatch.forced_backend() == "triton":
        _register("cpu")
