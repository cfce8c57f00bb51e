import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext.formats import block_sparse
from shapes import INTERPRETED, MNK, covering, random_mnk
from sparse_cases import (
    SPARSITIES,
    assert_bit_equal_for_any_threads,
    assert_takes_any_strides_and_dimensions,
    square_block_weight,
)
from tolerances import assert_as_accurate, terms

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (16, 32, 64)
ops = torch.ops.bigmodel_ext


def check_forward_and_gradients(m, n, k, sparsity, size, dtype, bias=True, values_dtype=torch.float32):
    """Against float64, and no worse than torch's dense product in the same dtype."""
    weight = square_block_weight(n, k, sparsity, size).to(values_dtype)
    mask = weight != 0
    values, crow, col = block_sparse.pack(weight, blocksize=size)
    x, grad = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
    b, w = torch.randn(n) if bias else None, weight.double()
    y = F.block_sparse_linear(x, values, crow, col, b, out_features=n)
    exact = torch.nn.functional.linear(x.double(), w, None if b is None else b.double())
    torchs = torch.nn.functional.linear(x.float(), weight.float(), b).to(dtype)
    assert_as_accurate(y, torchs, exact, scale=terms(x, w.T) + (b.abs().max().item() if bias and n else 0))
    dx = ops.block_sparse_linear_grad_input(grad, values, crow, col, k)
    assert_as_accurate(dx, (grad.float() @ weight.float()).to(dtype), grad.double() @ w, scale=terms(grad, w))
    dvalues = ops.block_sparse_linear_grad_values(grad, x, crow, col, size)
    stored = block_sparse.mask_of(crow, col, n, k, size)
    assert torch.equal(stored & mask, mask)
    in_blocks = lambda dense: block_sparse.pack(dense, stored, size)[0]  # noqa: E731
    exact = in_blocks(grad.double().T @ x.double())
    assert_as_accurate(dvalues, in_blocks(grad.float().T @ x.float()).to(dtype), exact, scale=terms(grad.T, x))


@pytest.mark.parametrize(("i", "m", "n", "k"), [(i, *s) for i, s in enumerate(MNK)])
def test_against_float64(float_isa, i, m, n, k):
    check_forward_and_gradients(m, n, k, SPARSITIES[i % 4], SIZES[i // 4 % 3], DTYPES[i % 3], bias=i % 2 == 0)


@pytest.mark.parametrize(("m", "n", "k"), random_mnk(150))
def test_random_shapes(m, n, k):
    seed = m * 90_001 + n * 301 + k
    torch.manual_seed(seed)
    check_forward_and_gradients(m, n, k, SPARSITIES[seed % 4], SIZES[seed % 3], DTYPES[seed % 5 % 3], bias=seed % 2 > 0)


@pytest.mark.parametrize(("sparsity", "size"), covering(SPARSITIES, SIZES))
def test_sparsities_and_sizes(float_isa, sparsity, size):
    for m in (
        (3, 140) if INTERPRETED else (1, 2, 3, 4, 24, 140)
    ):  # the kernels' groups of rows, and more than are packed at once
        check_forward_and_gradients(m, 70, 300, sparsity, size, torch.float32)


@pytest.mark.cpu_only(reason="sizes at which the CPU's kernels divide their work")
@pytest.mark.parametrize("size", SIZES)
def test_more_blocks_than_a_pass_takes(float_isa, size):
    check_forward_and_gradients(5, size, (131072 // size**2 // 4 * 2 + 3) * size, 0.0, size, torch.float32)
    check_forward_and_gradients(5, (131072 // size**2 // 4 + 3) * size, size, 0.0, size, torch.float32)


@pytest.mark.parametrize(("dtype", "size"), covering(DTYPES, SIZES))
def test_values_of_x_dtype(float_isa, dtype, size):
    for m in (1, 24) if INTERPRETED else (1, 2, 3, 4, 24, 130):
        check_forward_and_gradients(m, 50, 270, 0.6, size, dtype, values_dtype=dtype)


@pytest.mark.cpu_only(reason="threads that share one call's work")
def test_threads_and_runs_are_bit_equal(float_isa):
    packed = block_sparse.pack(square_block_weight(331, 517, 0.6, 16), blocksize=16)
    for m in (1, 3, 48, 200):
        x, grad, bias = torch.randn(m, 517), torch.randn(m, 331), torch.randn(331)

        def run(x=x, grad=grad, bias=bias):
            return (
                F.block_sparse_linear(x, *packed, bias, out_features=331),
                ops.block_sparse_linear_grad_input(grad, *packed, 517),
                ops.block_sparse_linear_grad_values(grad, x, *packed[1:], 16),
            )

        assert_bit_equal_for_any_threads(run, runs=5)


def test_strides_and_dimensions(float_isa):
    packed = block_sparse.pack(square_block_weight(19, 37, 0.3, 16), blocksize=16)
    call = lambda x, p, b=None: F.block_sparse_linear(x, *p, b, out_features=19)  # noqa: E731
    assert_takes_any_strides_and_dimensions(call, packed)


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bias_dtypes(float_isa, bias_dtype):
    packed = block_sparse.pack(square_block_weight(33, 40, 0.5, 32))
    x, bias = torch.randn(6, 40), torch.randn(33).to(bias_dtype)
    y = F.block_sparse_linear(x, *packed, bias, out_features=33)
    assert torch.equal(y, F.block_sparse_linear(x, *packed, bias.float(), out_features=33))


@pytest.mark.parametrize("m", [2, 40])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_numbers_reach_stored_blocks_only(float_isa, m, special):
    weight = torch.zeros(40, 20)
    weight[0, 0], weight[20, 19] = 2.0, 3.0  # block row 0 stores block column 0, row 1 column 1, row 2 nothing
    packed = block_sparse.pack(weight, blocksize=16)
    x = torch.ones(m, 20)
    x[1, 0] = special
    y = F.block_sparse_linear(x, *packed, out_features=40)
    assert y[0, [0, 20]].tolist() == [2.0, 3.0]
    assert y[1, 0].isnan() if math.isnan(special) else y[1, 0] == special
    assert y[1, 1:16].isnan().all()  # stored zeros times NaN or infinity
    assert torch.equal(y[1, 16:], y[0, 16:])


def test_what_lies_beyond_the_weight_stays_zero(float_isa):
    """The last blocks' padding is part of a Parameter: nothing may reach it, however bad the activations are."""
    packed = block_sparse.pack(torch.ones(20, 21), blocksize=16)
    for bad in (1.0, math.nan, math.inf):
        grad, x = torch.full((5, 20), bad), torch.full((5, 21), bad)
        dvalues = ops.block_sparse_linear_grad_values(grad, x, *packed[1:], 16)
        assert dvalues[1, 5:].eq(0).all()  # inputs beyond 21
        assert dvalues[2, :, 4:].eq(0).all()  # outputs beyond 20
        assert (dvalues[3, :5, :4].isnan() if math.isnan(bad) else dvalues[3, :5, :4] == 5 * bad).all()


@pytest.mark.cpu_only("a device's indices are not read before a launch: see emulator/test_sparse_products.py")
@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([1, 1, 2], [0, 1], "crow must begin with 0, got 1"),
        ([-1, 1, 2], [0, 1], "crow must begin with 0, got -1"),
        ([0, 1, 1], [0, 1], "crow must end with the number of blocks, 2, got 1"),
        ([0, 3, 2], [0, 1], "crow must not decrease, got 3 and then 2 at index 2"),
        ([0, -(2**31), 2], [0, 1], "crow must not decrease, got 0 and then -2147483648 at index 1"),
        ([0, 1, 2], [0, 2], r"col must be in \[0, 2\), got 2 at index 1"),
        ([0, 1, 2], [-1, 0], r"col must be in \[0, 2\), got -1 at index 0"),
        ([0, 1, 2], [0, 2**31 - 1], r"col must be in \[0, 2\), got 2147483647"),
    ],
)
def test_damaged_indices_are_refused(float_isa, crow, col, message):
    crow, col = torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32)
    x, grad, values = torch.ones(2, 20), torch.ones(2, 30), torch.ones(2, 16, 16)
    for call in (
        lambda: F.block_sparse_linear(x, values, crow, col, out_features=30),
        lambda: ops.block_sparse_linear_grad_input(grad, values, crow, col, 20),
        lambda: ops.block_sparse_linear_grad_values(grad, x, crow, col, 16),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    make = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = {
        "x": make(2, 20), "values": make(3, 16, 16), "crow": make(3, dtype=torch.int32),
        "col": make(3, dtype=torch.int32), "bias": None, "out_features": 30,
    }  # fmt: skip
    good["crow"][1:] = 3

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            F.block_sparse_linear(**{**good, **changed})

    refused(TypeError, r"x must be float32.*int32", x=make(2, 20, dtype=torch.int32))
    refused(TypeError, r"values must be float32.*float16", values=make(3, 16, 16, dtype=torch.float16))
    for shape in ((3,), (3, 16, 32), (3, 8, 8), (3, 16, 16, 1)):
        refused(ValueError, r"values must have.*\[3", values=make(*shape))
    refused(TypeError, r"crow must be int32, got int64", crow=make(3, dtype=torch.int64))
    refused(ValueError, r"crow must have shape \[3\], got \[4\]", crow=make(4, dtype=torch.int32))
    refused(TypeError, r"col must be int32, got int8", col=make(3, dtype=torch.int8))
    refused(ValueError, r"col must have shape \[3\], got \[2\]", col=make(2, dtype=torch.int32))
    refused(ValueError, r"x must have at least 1 dimension", x=make())
    refused(ValueError, r"out_features must not be negative, got -1", out_features=-1)
    refused(ValueError, r"bias must have shape \[30\], got \[3\]", bias=make(3))
    with pytest.raises(ValueError, match=r"in_features must not be negative, got -1"):
        ops.block_sparse_linear_grad_input(make(2, 30), good["values"], good["crow"], good["col"], -1)
    with pytest.raises(ValueError, match=r"blocksize must be 16, 32 or 64, got 8"):
        ops.block_sparse_linear_grad_values(make(2, 30), good["x"], good["crow"], good["col"], 8)
    with pytest.raises(TypeError, match=r"x must be float32, got bfloat16"):
        ops.block_sparse_linear_grad_values(
            make(2, 30), make(2, 20, dtype=torch.bfloat16), good["crow"], good["col"], 16
        )
    with pytest.raises(ValueError, match=r"grad must have"):
        ops.block_sparse_linear_grad_values(make(3, 30), make(2, 20), good["crow"], good["col"], 16)


@pytest.mark.cpu_only("float64 is the reference's, which a forced backend does not fall back to")
def test_gradients_twice_in_float64():
    values, crow, col = block_sparse.pack(square_block_weight(20, 18, 0.3, 16).double(), blocksize=16)
    x = torch.randn(2, 2, 18, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    call = lambda x, v: F.block_sparse_linear(x, v, crow, col, out_features=20)  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, values), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_matches_dense(float_isa, dtype):
    linear = torch.nn.Linear(70, 40)
    with torch.no_grad():
        linear.weight.copy_(square_block_weight(40, 70, 0.5, 16))
    layer = bm.nn.BlockSparseLinear.from_dense(linear, blocksize=16)
    x, grad = torch.randn(4, 5, 70).to(dtype).requires_grad_(), torch.randn(4, 5, 40).to(dtype)
    ours = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), grad)
    x64, w64, b64 = (t.detach().double().requires_grad_() for t in (x, linear.weight, linear.bias))
    exact = torch.autograd.grad(torch.nn.functional.linear(x64, w64, b64), (x64, w64, b64), grad.double())
    stored = block_sparse.mask_of(layer.crow, layer.col, 40, 70, 16)
    wanted = (exact[0], block_sparse.pack(exact[1], stored, 16)[0], exact[2])
    for got, want, inputs in zip(ours, wanted, (x, layer.values, layer.bias), strict=True):
        assert got.dtype == inputs.dtype
        assert_as_accurate(got, want.to(dtype).to(got.dtype), want)
