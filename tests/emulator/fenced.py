"""Tensors that end where memory ends: reading one byte behind them, or before them, is a segmentation fault. Run as a
script: all int8 kernels with such operands."""

import ctypes
import itertools
import mmap

import torch

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


def _protect(address: int) -> None:
    if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def fenced(tensor: torch.Tensor, at_start: bool = False) -> torch.Tensor:
    """A copy that ends at a page that may not be read; at_start: that begins behind one."""
    pages = -(-max(tensor.nbytes, 1) // _PAGE)
    region = mmap.mmap(-1, (pages + 2) * _PAGE)  # never unmapped
    whole = torch.frombuffer(region, dtype=torch.uint8)
    start = _PAGE if at_start else (pages + 1) * _PAGE - tensor.nbytes
    copy = whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    _protect(whole.data_ptr())
    _protect(whole.data_ptr() + (pages + 1) * _PAGE)
    return copy


def _run() -> None:
    from bigmodel_ext import _native, _reference

    native = _native.load_emulated()
    shapes = ((5, 9, 80), (3, 7, 36), (4, 70, 33), (2, 5, 2064), (1, 3, 16), (3, 70, 144))
    cases = itertools.product(native.int8_kernel_names(), shapes, (False, True), (1, 2))
    for kernel, (m, n, k), at_start, splits in cases:
        most = {"tile": 2, "wgmm": 0 if k % 16 else -(-k // 128)}.get(kernel[:4], 1)  # splits
        if splits > most or (kernel == "gemv" and m > 4):
            continue
        plan = native.int8_plan(m, n, k, floats=True, device=0, kernel=kernel, splits=splits)
        operands = torch.randn(m, k), torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n), torch.randn(n)
        out, workspace = torch.empty(m, n), torch.empty(plan[2], dtype=torch.uint8)
        fenced_ones = [fenced(t, at_start) for t in (*operands, out)]
        native.int8_linear(*fenced_ones, "none", None, plan, fenced(workspace, at_start=True))
        assert torch.equal(fenced_ones[-1], _reference.int8_linear(*operands)), (kernel, m, n, k)
        if kernel == "gemv":
            continue
        a, out = operands[1][: min(m, n)], torch.empty(min(m, n), n, dtype=torch.int32)
        plan = native.int8_plan(len(a), n, k, floats=False, device=0, kernel=kernel, splits=splits)
        fenced_ones = [fenced(t, at_start) for t in (a, operands[1], out)]
        native.int8_mm(*fenced_ones, plan, torch.empty(plan[2], dtype=torch.uint8))
        assert torch.equal(fenced_ones[-1], _reference.int8_mm(a, operands[1])), (kernel, m, n, k)


if __name__ == "__main__":
    _run()
