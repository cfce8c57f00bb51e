"""CUDA kernels: allocate the output, enqueue the kernel on torch's current stream. Registered only where torch has a
device and the library was built with nvcc; elsewhere CUDA tensors run on the reference.

``BIGMODEL_BACKEND=emulated`` registers the same functions for CPU tensors, with the module whose kernels run on the
emulator. Each function takes the compiled module first, so that it serves both."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigmodel_ext import _dispatch, _native
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext.backends.cuda import _architectures, blocks, dropout, int8, sparse, weights


def _double(x: Tensor) -> str | None:
    return "float64 is computed by the reference" if x.dtype is torch.float64 else None


def _candidates(backend: str, native: Any) -> dict[str, Candidate]:
    return {
        "fused_dropout": Candidate(backend, partial(dropout.fused_dropout, native), _double),
        "fused_dropout_backward": Candidate(backend, partial(dropout.fused_dropout_backward, native), _double),
        "fused_dropout_backward_bias": Candidate(
            backend, partial(dropout.fused_dropout_backward_bias, native), _double
        ),
        "pack_panel_csr": Candidate(backend, partial(sparse.pack_panel_csr, native)),
        "sparse_linear": Candidate(backend, partial(sparse.sparse_linear, native), _double),
        "int8_sparse_linear": Candidate(backend, partial(sparse.int8_sparse_linear, native)),
        "sparse_linear_grad_input": Candidate(backend, partial(sparse.sparse_linear_grad_input, native), _double),
        "sparse_linear_grad_values": Candidate(backend, partial(sparse.sparse_linear_grad_values, native), _double),
        **{
            f"{layer}{part}": Candidate(backend, partial(getattr(blocks, f"{layer}{part}"), native), _double)
            for layer in ("block_sparse_linear", "semi_sparse_linear")
            for part in ("", "_grad_input", "_grad_values")
        },
        "int8_semi_sparse_linear": Candidate(backend, partial(blocks.int8_semi_sparse_linear, native), int8.refusal),
        "quantize_rows": Candidate(backend, partial(int8.quantize_rows, native), int8.refusal),
        "int8_mm": Candidate(backend, partial(int8.int8_mm, native), int8.refusal),
        "int8_linear": Candidate(backend, partial(int8.int8_linear, native), int8.refusal),
        "int8_weight_only_linear": Candidate(backend, partial(weights.int8_weight_only_linear, native)),
        "binary_coded_linear": Candidate(backend, partial(weights.binary_coded_linear, native)),
        "fused_dropout_norm": Candidate(
            backend, partial(dropout.fused_dropout_norm, native), partial(dropout.why_not_norm, native)
        ),
        "fused_dropout_norm_backward": Candidate(
            backend,
            partial(dropout.fused_dropout_norm_backward, native),
            partial(dropout.why_not_norm_backward, native),
        ),
    }


if _dispatch.forced_backend() == "emulated":
    _dispatch.register("cpu", _candidates("emulated", _native.load_emulated()))
elif (_cuda := _native.load_cuda()) is not None:
    _devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    _problems = _architectures.problems(_cuda.ARCHITECTURES, _devices)
    if len(_problems) == len(_devices):
        _dispatch.unavailable["cuda"] = _problems[0]
    else:
        _dispatch.register("cuda", _architectures.kept_from(_problems, _candidates("cuda", _cuda)))
