"""The emulator's reading of the tensor-core instructions against this GPU's: the same registers into both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PRODUCTS = ("s8", "bf16", "f16", "sparse_s8", "sparse_bf16_0", "sparse_bf16_1", "sparse_f16_0", "sparse_f16_1")
# swizzle, stride, leading and inside of an operand's image, as fragments.h has them
OPERANDS = ((128, 1024, 16, 0), (128, 2048, 16, 96), (64, 512, 16, 32), (32, 256, 16, 0), (0, 128, 1024, 0))
PAIRS = (0x4, 0x8, 0xC, 0x9, 0xD, 0xE)  # two positions of four, the smaller one first


def _registers(kind: str, *shape: int) -> Any:
    """Numbers whose sums are exact."""
    import torch

    if "s8" in kind:
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)
    dtype = torch.bfloat16 if "bf16" in kind else torch.float16
    numbers = torch.randint(-8, 9, (*shape[:-1], 2 * shape[-1])).to(dtype)
    return numbers.view(torch.int32)


def _metadata() -> Any:
    import torch

    words = torch.zeros(32, 1, dtype=torch.int64)
    for i in range(8):
        words |= torch.tensor(PAIRS)[torch.randint(6, (32, 1))] << (4 * i)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def cases(architecture: int) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(what, function, arguments but the last, which is written, and that)."""
    import torch

    for kind in PRODUCTS:
        sparse = kind.startswith("sparse")
        operands = _registers(kind, 32, 4), _registers(kind, 32, 4 if sparse else 2)
        yield f"mma {kind}", "mma_fragments", (kind, *operands, _metadata(), torch.zeros(32, 4, dtype=torch.int32))
    image = torch.randint(256, (4096,), dtype=torch.uint8)
    offsets = torch.randperm(256)[:32].int()[:, None] * 16
    for matrices in (1, 2, 4):
        for transposed in (False, True):
            out = torch.zeros(32, matrices, dtype=torch.int32)
            name = f"ldmatrix x{matrices}{'.trans' if transposed else ''}"
            yield name, "load_matrix_fragments", (transposed, image, offsets, out)
    if architecture == 90:
        for kind in PRODUCTS[:3]:
            for operand in OPERANDS:
                image = _registers(kind, 1, 8192).view(torch.uint8).flatten()
                out = torch.zeros(128, 32, dtype=torch.int32)
                yield f"wgmma {kind} {operand}", "wgmma_fragments", (kind, *operand, image, out)


def compare() -> list[tuple[str, str]]:
    """(what, outcome), "passed" where all registers are equal."""
    import torch
    from bigmodel_ext import _native

    emulated, cuda = _native.load_emulated(), _native.load_cuda()
    major, minor = torch.cuda.get_device_capability()
    outcomes = []
    for what, function, args in cases(10 * major + minor):
        on_device = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
        try:
            getattr(emulated, function)(*args)
            getattr(cuda, function)(*on_device)
            differ = int((on_device[-1].cpu() != args[-1]).sum())
            outcomes.append((what, "passed" if differ == 0 else f"FAILED: {differ} of {args[-1].numel()} differ"))
        except Exception as error:
            outcomes.append((what, f"FAILED: {error}"))
    return outcomes
