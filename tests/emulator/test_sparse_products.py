"""The CUDA kernels of block-sparse and 2:4 layers on the emulator: every tile at its edges, no bank conflicts, damaged
indices, and that every wait and barrier is needed. The op tests run on them too (make test-emulated)."""

import math
from functools import partial

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext.backends.cuda import blocks
from bigmodel_ext.formats import block_sparse, two_four
from emulation import SCHEDULES, unmissed
from sparse_cases import square_block_weight, two_four_weight
from tolerances import assert_as_accurate, terms

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (16, 32, 64)
# Outputs and rows of a block's tile, inputs of a stage, stages.
SHAPES = {"few_rows": (32, 16, 256, 5), "some_rows": (128, 64, 64, 4), "medium": (128, 128, 64, 3),
          "large": (256, 128, 64, 4)}  # fmt: skip


def check(got, a, b, bias=None):
    """Against float64, and no worse than float32 sums: a [M,K] @ b [K,N]."""
    exact, torchs = a.double() @ b.double(), a.float() @ b.float()
    if bias is not None:
        exact, torchs = exact + bias.double(), torchs + bias
    assert_as_accurate(got, torchs.to(got.dtype), exact, scale=terms(a, b))


def run_semi(native, shape, dtype, m, n, k):
    weight = two_four_weight(n, k).to(dtype)
    values, index = two_four.pack(weight)
    x, bias, out = torch.randn(m, k).to(dtype), torch.randn(n), torch.full((m, n), math.nan, dtype=dtype)
    native.semi_sparse_linear(x, values, index, bias, out, native.SemiShape.__members__[shape])
    check(out, x, weight.T, bias)


def run_semi_grad_input(native, dtype, m, n, k):
    weight = two_four_weight(n, k).to(dtype)
    grad = torch.randn(m, n).to(dtype)
    check(blocks.semi_sparse_linear_grad_input(native, grad, *two_four.pack(weight), k), grad, weight)


def run_semi_grad_values(native, dtype, m, n, k):
    index = two_four.pack(two_four_weight(n, k))[1]
    grad, x = torch.randn(m, n).to(dtype), torch.randn(m, k).to(dtype)
    got = blocks.semi_sparse_linear_grad_values(native, grad, x, index)
    dense, stored = two_four.unpack(got, index, n, k), two_four.mask_of(index, n, k)
    exact = torch.where(stored, grad.double().T @ x.double(), 0.0)
    assert_as_accurate(dense, torch.where(stored, grad.float().T @ x.float(), 0.0).to(dtype), exact)


def run_block(native, size, dtype, m, n, k):
    weight = square_block_weight(n, k, 0.3, size).to(dtype)
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n)
    values, crow, col = block_sparse.pack(weight, blocksize=size)
    check(blocks.block_sparse_linear(native, x, values, crow, col, bias, n), x, weight.T, bias)


def run_block_grad_input(native, size, dtype, m, n, k):
    weight = square_block_weight(n, k, 0.3, size).to(dtype)
    grad = torch.randn(m, n).to(dtype)
    got = blocks.block_sparse_linear_grad_input(native, grad, *block_sparse.pack(weight, blocksize=size), k)
    check(got, grad, weight)


def run_block_grad_values(native, size, dtype, m, n, k):
    _, crow, col = block_sparse.pack(square_block_weight(n, k, 0.3, size), blocksize=size)
    grad, x = torch.randn(m, n).to(dtype), torch.randn(m, k).to(dtype)
    got = blocks.block_sparse_linear_grad_values(native, grad, x, crow, col, size)
    exact = _reference.block_sparse_linear_grad_values(grad.double(), x.double(), crow, col, size)
    torchs = _reference.block_sparse_linear_grad_values(grad.float(), x.float(), crow, col, size).to(dtype)
    assert_as_accurate(got, torchs, exact)


def run_int8_semi(native, shape, dtype, m, n, k):
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    weight = torch.where(two_four_weight(n, k) != 0, q, 0).to(torch.int8)
    values, index = two_four.pack_int8(weight)
    x, scale, bias = torch.randn(m, k).to(dtype), torch.rand(n), torch.randn(n)
    out = torch.full((m, n), math.nan, dtype=dtype)
    scratch = torch.empty(m, -(-k // 16) * 16, dtype=torch.int8), torch.empty(m)
    wanted = native.SemiShape.__members__[shape]
    native.int8_semi_sparse_linear(x, values, index, scale, bias, out, "relu", *scratch, wanted)
    assert torch.equal(out, _reference.int8_linear(x, weight, scale, bias, "relu"))


def no_conflicts(native):
    reports = native.take_reports()
    assert reports
    assert all(r["matrix_conflicts"] == 0 for r in reports)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile_at_its_edges(emulated, shape, dtype):
    emulated.take_reports()
    outputs, rows, depth, stages = SHAPES[shape]
    for m, n, k in (
        (rows, outputs, depth),
        (rows - 1, outputs + 1, depth - 8),
        (rows + 1, outputs - 1, depth + 8),
        (1, 8, depth * stages + 32),
        (9, 2 * outputs + 33, 16),
    ):
        run_semi(emulated, shape, dtype, m, n, k)
        run_int8_semi(emulated, shape, dtype, m, n + m % 3, 2 * k - m % 5)
    no_conflicts(emulated)


def test_bands_of_tiles(emulated):
    """More rows of tiles than neighbours take together, and a last band that is lower."""
    run_semi(emulated, "few_rows", torch.bfloat16, 10 * 16 + 3, 100, 64)
    run_block(emulated, 16, torch.float32, 9 * 128 + 3, 40, 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_blocks_at_the_edges(emulated, size, dtype):
    emulated.take_reports()
    for m, n, k in ((16, 64, 64), (33, 65, 63), (31, 2 * size + 1, 200), (129, 40, 5 * size), (7, 300, 8)):
        for run in (run_block, run_block_grad_input, run_block_grad_values):
            run(emulated, size, dtype, m, n, k)
    no_conflicts(emulated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_two_four_at_the_edges(emulated, dtype):
    emulated.take_reports()
    for m, n, k in ((32, 64, 64), (33, 65, 96), (17, 130, 36), (130, 31, 65), (1, 32, 200)):
        run_semi_grad_input(emulated, dtype, m, n, k)
        run_semi_grad_values(emulated, dtype, m, n, k)
    no_conflicts(emulated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_stored_sees_nothing(emulated, dtype):
    """Bad numbers where the weight has nothing: mma.sp must take from B by the metadata, not multiply with zeros."""
    values, index = two_four.pack(torch.tensor([[0.0, 3.0, 0.0, 2.0, 0.0, 0.0, 1.0, 1.0]] * 33).to(dtype))
    for m in (1, 20, 70):
        x = torch.tensor([[math.nan, 1.0, math.inf, 1.0, -math.inf, math.nan, 1.0, 1.0]] * m).to(dtype)
        y = blocks.semi_sparse_linear(emulated, x, values, index, None, 33)
        assert torch.equal(y, torch.full((m, 33), 7.0, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_blocks_out_of_range_are_left_out(emulated, size, dtype):
    """A device's indices are not read before a launch: what they name outside of the tensors counts as not stored."""
    n, k, m = 2 * size, 2 * size, 5
    values = torch.randn(3, size, size).to(dtype)
    crow = torch.tensor([0, 2, 3], dtype=torch.int32)
    x, grad = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)

    def results(crow, col, values):
        return (
            blocks.block_sparse_linear(emulated, x, values, crow, col, None, n),
            blocks.block_sparse_linear_grad_input(emulated, grad, values, crow, col, k),
        )

    good = results(torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), values[::2])
    for bad in (2, -1, 2**31 - 1, -(2**31)):
        col = torch.tensor([0, bad, 1] if bad > 0 else [bad, 0, 1], dtype=torch.int32)
        stored = values if bad > 0 else values[[1, 0, 2]]
        assert all(map(torch.equal, results(crow, col, stored), good))
        dvalues = blocks.block_sparse_linear_grad_values(emulated, grad, x, crow, col, size)
        assert dvalues[1 if bad > 0 else 0].eq(0).all()
    for ends in ([0, 3, 2], [5, 3, 2], [-(2**31), 2**31 - 1, 7], [0, -1, -1], [2**31 - 1, 0, 0]):
        crow, col = torch.tensor(ends, dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32)
        assert all(y.isfinite().all() for y in results(crow, col, values))
        assert blocks.block_sparse_linear_grad_values(emulated, grad, x, crow, col, size).isfinite().all()


# Steps through the ring of stages that end in its first stage, where the sums are put afterwards.
CASES = {
    **{
        f"semi_{shape}_{dtype}".replace("torch.", ""): partial(run_semi, shape=shape, dtype=dtype, m=rows, n=outputs,
                                                               k=depth * (stages + 1))
        for shape, (outputs, rows, depth, stages) in SHAPES.items()
        for dtype in DTYPES
        if dtype is not torch.float16 and (dtype is torch.bfloat16 or shape in ("few_rows", "medium"))
    },
    **{
        f"int8_semi_{shape}": partial(
            run_int8_semi, shape=shape, dtype=torch.float32, m=rows, n=outputs, k=2 * depth * (stages + 1)
        )
        for shape, (outputs, rows, depth, stages) in SHAPES.items()
    },
    **{
        f"{run.__name__}_{size}_{dtype}_{m}".replace("torch.", ""): partial(run, size=size, dtype=dtype, m=m, n=depth,
                                                                            k=depth)
        for run, depth in ((run_block, 1000), (run_block_grad_input, 1000))
        for size in SIZES
        for dtype in (torch.float32, torch.bfloat16)
        for m in (16, 64)
    },
    **{
        f"run_block_grad_values_{size}_{dtype}".replace("torch.", ""): partial(
            run_block_grad_values, size=size, dtype=dtype, m=32 * 6, n=70, k=70
        )
        for size in SIZES
        for dtype in (torch.float32, torch.bfloat16)
    },
    **{
        f"run_semi_grad_input_{dtype}_{m}".replace("torch.", ""): partial(
            run_semi_grad_input, dtype=dtype, m=m, n=(64 if dtype is torch.bfloat16 else 32) * steps, k=64
        )
        for dtype in (torch.float32, torch.bfloat16)
        for m, steps in ((16, 5), (64, 4))
    },
    **{
        f"run_semi_grad_values_{dtype}".replace("torch.", ""): partial(
            run_semi_grad_values, dtype=dtype, m=32 * 5, n=64, k=64
        )
        for dtype in (torch.float32, torch.bfloat16)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_wait_is_needed(emulated, name):
    assert unmissed(emulated, partial(CASES[name], emulated)) == []


@pytest.mark.parametrize("name", list(CASES)[::5])
def test_results_do_not_depend_on_the_schedule(emulated, name):
    try:
        for schedule, seed in SCHEDULES[1:4]:
            emulated.configure(schedule=schedule, seed=seed)
            CASES[name](emulated)
    finally:
        emulated.configure()
