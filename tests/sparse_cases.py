"""Sparse weights, and strange but legal ways of holding a tensor, for the tests of the sparse ops."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from shapes import EXECUTED

BACKEND = os.environ.get("BIGMODEL_BACKEND", "")
OTHER_KERNELS = BACKEND not in ("", "cpu", "reference")
# Up to so many rows of x what is not stored sees nothing; in the dense tiles of GPU kernels, for more, it is 0.
WITHOUT_TILES = 8 if OTHER_KERNELS else sys.maxsize
SPARSITIES = (0.0, 0.5, 0.9, 1.0)
PANELS = (16, 64, 128, 256) if EXECUTED else (1, 64, 128, 256)  # of one column: many loops


def sparse_weight(n: int, k: int, sparsity: float) -> torch.Tensor:
    """float32 [N,K] of which about `sparsity` is 0; about every fourth row and column is empty."""
    keep = torch.rand(n, k) >= sparsity
    if sparsity > 0:
        keep &= (torch.rand(n, 1) > 0.25) & (torch.rand(k) > 0.25)
    return torch.where(keep, torch.randn(n, k), 0.0)


def square_block_weight(n: int, k: int, sparsity: float, size: int) -> torch.Tensor:
    """float32 [N,K] in blocks of which about `sparsity` is 0; about every fourth block row and column is empty."""
    rows, columns = -(-n // size), -(-k // size)
    keep = torch.rand(rows, columns) >= sparsity
    if sparsity > 0:
        keep &= (torch.rand(rows, 1) > 0.25) & (torch.rand(columns) > 0.25)
    keep = keep.repeat_interleave(size, 0).repeat_interleave(size, 1)[:n, :k]
    return torch.where(keep, torch.randn(n, k), 0.0)


def two_four_weight(n: int, k: int, sparsity: float = 0.0) -> torch.Tensor:
    """float32 [N,K] with at most two of every four not 0, at random positions; `sparsity` makes more of them 0."""
    order = torch.rand(n, -(-k // 4), 4).argsort(-1)
    keep = ((order < 2) & (torch.rand(order.shape) >= sparsity)).flatten(1)[:, :k]
    return torch.where(keep, torch.randn(n, k), 0.0)


def int8_block_weight(n: int, k: int, sparsity: float) -> torch.Tensor:
    """int8 [N,K], whole 1x4 blocks 0, the extremes -128 and 127 frequent."""
    blocks = -(-k // 4)
    keep = (torch.rand(n, blocks, 1) >= sparsity) & ((torch.rand(n, 1, 1) > 0.25) | (sparsity == 0))
    q = torch.randint(-140, 140, (n, blocks, 4)).clamp(-128, 127)
    return torch.where(keep, q, 0).reshape(n, blocks * 4)[:, :k].to(torch.int8).contiguous()


def strange_views(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """x [M,K] with the same numbers and other strides."""
    m, k = x.shape
    stepped = torch.full((2 * m, 3 * k), torch.nan, dtype=x.dtype)
    stepped[::2, ::3] = x
    offset = torch.full((m * k + 1,), torch.nan, dtype=x.dtype)
    offset[1:] = x.flatten()
    return {
        "transposed": x.t().contiguous().t(),
        "stepped": stepped[::2, ::3],
        "offset": offset[1:].view(m, k),
    }


def assert_bit_equal_for_any_threads(run: Callable[[], tuple[torch.Tensor, ...]], runs: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = run()
        for count in (2, 3):
            torch.set_num_threads(count)
            for _ in range(runs):
                assert all(map(torch.equal, run(), single)), f"{count} threads give other bits than one"
    finally:
        torch.set_num_threads(before)


def assert_takes_any_strides_and_dimensions(call: Callable[..., torch.Tensor], packed: Sequence[torch.Tensor]) -> None:
    """call(x, packed, bias): a layer of 37 inputs and 19 outputs."""
    x, bias = torch.randn(24, 37), torch.randn(19)
    expected = call(x, packed, bias)
    for name, view in strange_views(x).items():
        assert torch.equal(call(view, packed, bias), expected), name
    stepped = [torch.stack([t, t], 1)[:, 0] for t in packed]
    assert torch.equal(call(x, stepped, torch.stack([bias, bias], 1)[:, 1]), expected)
    assert torch.equal(call(x[:1].expand(24, 37), packed, bias), call(x[:1].repeat(24, 1), packed, bias))
    for shape in ((37,), (1, 37), (4, 6, 37), (2, 3, 4, 37), (2, 1, 3, 4, 37), (0, 3, 37)):
        flat = x.flatten()[: math.prod(shape)].view(math.prod(shape[:-1]), 37)
        y = call(flat.view(shape), packed)
        assert y.shape == (*shape[:-1], 19)
        assert torch.equal(y.reshape(flat.shape[0], 19), call(flat, packed))


def refused_when_read(transposes=False):
    """Deriving another form of the pattern reads all of it, so there mistakes are found instead of survived: CUDA's
    kernels always do, those of the CPU transpose it for many rows, Triton's never."""
    reads = BACKEND != "triton" if OTHER_KERNELS else transposes
    named = "col or order names|a column twice in one row"
    return pytest.raises(ValueError, match=named) if reads else contextlib.nullcontext()
