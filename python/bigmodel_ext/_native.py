"""The only importer of the compiled module. It hands over torch's own facilities: how to read a tensor (the DLPack
exchange table) and how to share work (the thread pool's C entry points), so that ``_C`` never sees a torch header."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import bigmodel_ext._C as _C

ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512vbmi")


def _address(library: ctypes.CDLL, symbol: str) -> int:
    return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0


def _initialize() -> None:
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        raise ImportError(f"bigmodel_ext needs torch >= 2.10, found {torch.__version__}")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    _C.initialize(torch.Tensor, _address(library, "torch_parallel_for"), _address(library, "torch_get_num_threads"))
    forced = os.environ.get("BIGMODEL_ISA")
    if forced:
        _C.set_active_isa(forced)


_initialize()

int8_linear = _C.int8_linear
binary_coded_linear = _C.binary_coded_linear
int8_weight_only_linear = _C.int8_weight_only_linear
int8_mm = _C.int8_mm
int8_conv2d = _C.int8_conv2d
fused_dropout = _C.fused_dropout
fused_dropout_backward = _C.fused_dropout_backward
fused_dropout_backward_bias = _C.fused_dropout_backward_bias
fused_dropout_norm = _C.fused_dropout_norm
fused_dropout_norm_backward = _C.fused_dropout_norm_backward
fused_dropout_at = _C.fused_dropout_at
peak_fp32 = _C.peak_fp32
peak_int8 = _C.peak_int8
peak_read = _C.peak_read
philox_4x32 = _C.philox_4x32
quantize_rows = _C.quantize_rows
int8_sparse_linear = _C.int8_sparse_linear
sparse_linear = _C.sparse_linear
sparse_conv2d = _C.sparse_conv2d
sparse_linear_grad_input = _C.sparse_linear_grad_input
sparse_linear_grad_values = _C.sparse_linear_grad_values
count_panel_csr = _C.count_panel_csr
fill_panel_csr = _C.fill_panel_csr
transpose_panel_csr = _C.transpose_panel_csr
permute_values = _C.permute_values
same_bytes = _C.same_bytes
block_sparse_linear = _C.block_sparse_linear
block_sparse_linear_grad_input = _C.block_sparse_linear_grad_input
block_sparse_linear_grad_values = _C.block_sparse_linear_grad_values
semi_sparse_linear = _C.semi_sparse_linear
semi_sparse_linear_grad_input = _C.semi_sparse_linear_grad_input
semi_sparse_linear_grad_values = _C.semi_sparse_linear_grad_values
ising_start = _C.ising_start
ising_descend = _C.ising_descend


def new_weight(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialized tensor for weights that kernels stream: on the CPU in huge pages, where the system has them."""
    weight = like.new_empty(shape)
    if type(weight) is torch.Tensor and weight.device.type == "cpu":
        _C.about_to_write(weight.data_ptr(), weight.nbytes)
    return weight


def load_cuda() -> Any | None:
    """The CUDA kernels' module, or None if it was not built or this torch can't use it."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    try:
        import bigmodel_ext._C_cuda as _C_cuda
    except ImportError as error:
        if error.name == "bigmodel_ext._C_cuda" or "cannot import name" in str(error):
            return None  # built without nvcc
        raise
    _C_cuda.initialize(torch.Tensor)
    return _C_cuda


def has_emulated() -> bool:
    """Whether the CUDA kernels were built for the emulator (CMake's BIGMODEL_EMULATE)."""
    return importlib.util.find_spec("bigmodel_ext._C_emulated") is not None


def load_emulated() -> Any:
    """The CUDA kernels' module with the emulator under it: it takes CPU tensors. For tests.

    Raises ImportError if it was not built."""
    import bigmodel_ext._C_emulated as _C_emulated

    _C_emulated.initialize(torch.Tensor)
    return _C_emulated


def build() -> str:
    """Tells builds of the kernels apart."""
    return f"{zlib.crc32(Path(_C.__file__).read_bytes()):08x}"


def active_isa() -> str:
    """The instruction set that kernels use now."""
    return str(_C.active_isa())


def kernel_isa(op: str) -> str:
    """The instruction set of the kernel that an op runs now: the best it has a version for, up to the active one."""
    return str(_C.kernel_isa(op))


def available_isas() -> tuple[str, ...]:
    """What this processor can run, from the plainest to the best."""
    return ISAS[: ISAS.index(_C.detected_isa()) + 1]


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run a block on another instruction set (process-wide; for tests and benchmarks)."""
    before = active_isa()
    _C.set_active_isa(name)
    try:
        yield
    finally:
        _C.set_active_isa(before)
