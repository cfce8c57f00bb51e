import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext.formats import csr
from shapes import INTERPRETED, MNK, RANDOM, covering
from sparse_cases import (
    PANELS,
    SPARSITIES,
    WITHOUT_TILES,
    assert_bit_equal_for_any_threads,
    assert_takes_any_strides_and_dimensions,
    sparse_weight,
)
from tolerances import assert_as_accurate, terms

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ops = torch.ops.bigmodel_ext


def check_forward_and_gradients(m, n, k, sparsity, panel, dtype, bias=True, values_dtype=torch.float32, sort=False):
    """Against float64, and no worse than torch's dense product in the same dtype."""
    weight = sparse_weight(n, k, sparsity).to(values_dtype)
    mask = weight != 0
    pack = lambda dense: (*csr.pack(dense, mask, panel), None)  # noqa: E731
    if sort:
        pack = lambda dense: csr.sort_rows(*csr.pack(dense, mask, panel), n)  # noqa: E731
    values, crow, col, order = pack(weight)
    x, grad = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
    b = torch.randn(n) if bias else None
    w = weight.double()
    y = F.sparse_linear(x, values, crow, col, b, out_features=n, panel=panel, order=order)
    exact = torch.nn.functional.linear(x.double(), w, None if b is None else b.double())
    torchs = torch.nn.functional.linear(x.float(), weight.float(), b).to(dtype)
    assert_as_accurate(y, torchs, exact, scale=terms(x, w.T) + (b.abs().max().item() if bias and n else 0))
    dx = ops.sparse_linear_grad_input(grad, values, crow, col, k, panel, order)
    assert_as_accurate(dx, (grad.float() @ weight.float()).to(dtype), grad.double() @ w, scale=terms(grad, w))
    dvalues = ops.sparse_linear_grad_values(grad, x, crow, col, panel, order)
    in_order = lambda dense: pack(dense)[0]  # noqa: E731
    exact = in_order(grad.double().T @ x.double())
    assert_as_accurate(dvalues, in_order(grad.float().T @ x.float()).to(dtype), exact, scale=terms(grad.T, x))


@pytest.mark.parametrize(("i", "m", "n", "k"), [(i, *s) for i, s in enumerate(MNK)])
def test_against_float64(isa, i, m, n, k):
    check_forward_and_gradients(m, n, k, SPARSITIES[i % 4], PANELS[i // 4 % 4], DTYPES[i % 3], bias=i % 2 == 0)


@pytest.mark.parametrize(("m", "n", "k"), RANDOM)
def test_random_shapes(m, n, k):
    seed = m * 90_001 + n * 301 + k
    torch.manual_seed(seed)
    panel = (1, 3, 64, 100, 128, 200, 256)[seed % 7]
    check_forward_and_gradients(
        m, n, k, SPARSITIES[seed % 4], panel, DTYPES[seed % 3], bias=seed % 5 != 0, sort=seed % 2 == 0
    )  # fmt: skip


@pytest.mark.parametrize(("sparsity", "panel"), covering(SPARSITIES, PANELS))
def test_sparsities_and_panels(isa, sparsity, panel):
    check_forward_and_gradients(67, 70, 300, sparsity, panel, torch.float32)
    check_forward_and_gradients(2, 70, 300, sparsity, panel, torch.float32)


@pytest.mark.parametrize(("dtype", "m"), covering(DTYPES, (1, 3, 4, 20, 40, 64, 130)))
def test_values_of_x_dtype(isa, m, dtype):
    check_forward_and_gradients(m, 50, 270, 0.6, 128, dtype, values_dtype=dtype)
    check_forward_and_gradients(m, 50, 270, 0.6, 256, dtype)


@pytest.mark.parametrize(("shape", "sparsity"), covering(((40, 300, 128), (700, 90, 64), (1100, 200, 256)), (0.3, 0.9)))
def test_sorted_rows(isa, shape, sparsity):
    n, k, panel = shape
    for i, m in enumerate((2, 20) if INTERPRETED else (1, 2, 20, 40, 50, 64, 130)):
        dtype = DTYPES[i % 3]
        values_dtype = dtype if i % 2 else torch.float32
        check_forward_and_gradients(m, n, k, sparsity, panel, dtype, values_dtype=values_dtype, sort=True)


@pytest.mark.parametrize("full_first", [True, False])
@pytest.mark.parametrize("panel", [128, 256])
def test_one_row_times_full_and_empty_rows(isa, panel, full_first):
    """Stretches of a block's entries may hold few rows or many."""
    weight = torch.randn(512, 256)
    weight[256:] *= torch.rand(256, 1) < 0.1
    values, crow, col = csr.pack(weight if full_first else weight.flip(0), panel=panel)
    x = torch.randn(1, 256)
    y = F.sparse_linear(x, values, crow, col, out_features=512, panel=panel)
    exact = x.double() @ weight.double().T
    assert_as_accurate(y if full_first else y.flip(1), x @ weight.T, exact, scale=terms(x, weight.T))


@pytest.mark.parametrize(("length", "special"), covering(range(1, 20, 3 if INTERPRETED else 1), (math.nan, math.inf)))
def test_special_numbers_in_runs_of_rows(isa, length, special):
    """In a run of rows of any length the last entries do not see what lies behind them."""
    n, k = 40, 64
    weight = torch.zeros(n, k)
    for row in range(n):
        weight[row, torch.randperm(k - 1)[:length]] = 1.0
    *rows, order = csr.sort_rows(*csr.pack(weight), n)
    for m in (m for m in (2, 20, 40, 64) if m <= WITHOUT_TILES):
        x = torch.ones(m, k)
        x[:, k - 1] = special  # stored by no row
        x[1, 0] = special
        y = F.sparse_linear(x, *rows, out_features=n, panel=128, order=order)
        assert torch.equal(y[0], torch.full((n,), float(length)))
        assert torch.equal(y[1].isfinite(), weight[:, 0] == 0)


@pytest.mark.cpu_only(reason="threads that share one call's work")
@pytest.mark.parametrize("sorted_rows", [False, True])
def test_threads_and_runs_are_bit_equal(isa, sorted_rows):
    weight = sparse_weight(331, 517, 0.7)
    values, crow, col = csr.pack(weight)
    order = None
    if sorted_rows:
        values, crow, col, order = csr.sort_rows(values, crow, col, 331)
    for m in (1, 3, 48, 70, 200):
        x, grad, bias = torch.randn(m, 517), torch.randn(m, 331), torch.randn(331)

        def run(x=x, grad=grad, bias=bias):
            return (
                F.sparse_linear(x, values, crow, col, bias, out_features=331, panel=128, order=order),
                ops.sparse_linear_grad_input(grad, values, crow, col, 517, 128, order),
                ops.sparse_linear_grad_values(grad, x, crow, col, 128, order),
            )

        assert_bit_equal_for_any_threads(run, runs=10)


@pytest.mark.cpu_only(reason="the interpreter and the emulator run one call at a time")
def test_python_threads_at_once():
    def one(seed):
        g = torch.Generator().manual_seed(seed)
        k = 40 + 100 * (seed % 8)
        weight = torch.randn(60 + seed, k, generator=g)
        x = torch.randn(5 + 9 * seed, k, generator=g)
        packed = csr.pack(torch.where(weight.abs() > 1, weight, 0.0))
        call = lambda: F.sparse_linear(x, *packed, out_features=60 + seed, panel=128)  # noqa: E731
        first = call()
        return first, all(torch.equal(call(), first) for _ in range(20)), x, packed

    with ThreadPoolExecutor(8) as pool:
        for seed, (y, repeated, x, packed) in enumerate(pool.map(one, range(8))):
            assert repeated
            assert torch.equal(y, F.sparse_linear(x, *packed, out_features=60 + seed, panel=128))


def test_strides_and_dimensions(isa):
    weight = sparse_weight(19, 37, 0.5)
    packed = csr.pack(weight, panel=16)
    call = lambda x, p, b=None: F.sparse_linear(x, *p, b, out_features=19, panel=16)  # noqa: E731
    assert_takes_any_strides_and_dimensions(call, packed)


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bias_dtypes(isa, bias_dtype):
    packed = csr.pack(sparse_weight(33, 40, 0.5))
    x, bias = torch.randn(6, 40), torch.randn(33).to(bias_dtype)
    y = F.sparse_linear(x, *packed, bias, out_features=33, panel=128)
    assert torch.equal(y, F.sparse_linear(x, *packed, bias.float(), out_features=33, panel=128))


@pytest.mark.parametrize("m", [m for m in (2, 40) if m <= WITHOUT_TILES])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_numbers_reach_stored_weights_only(isa, m, special):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    mask = weight != 0
    mask[2, 0] = True  # a stored zero
    packed = csr.pack(weight, mask)
    x = torch.ones(m, 3)
    x[1, 0] = special
    y = F.sparse_linear(x, *packed, out_features=3, panel=128)
    assert y[0].tolist() == [3.0, 3.0, 0.0]
    assert y[1, 1] == 3.0  # does not store column 0
    assert y[1, 2].isnan()  # stored 0 times NaN or infinity
    assert y[1, 0].isnan() if math.isnan(special) else y[1, 0] == special


@pytest.mark.cpu_only("float64 is the reference's, which a forced backend does not fall back to")
def test_gradcheck_in_float64():
    weight = sparse_weight(5, 11, 0.5).double()
    values, crow, col = csr.pack(weight, panel=4)
    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    call = lambda x, v, b: F.sparse_linear(x, v, crow, col, b, out_features=5, panel=4)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, values, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd_matches_dense(isa, dtype):
    weight = sparse_weight(30, 70, 0.6)
    mask = weight != 0
    values, crow, col = csr.pack(weight, panel=64)
    bias = torch.randn(30, requires_grad=True)
    x = torch.randn(4, 5, 70).to(dtype).requires_grad_()
    grad = torch.randn(4, 5, 30).to(dtype)
    ours = torch.autograd.grad(
        F.sparse_linear(x, values.requires_grad_(), crow, col, bias, out_features=30, panel=64), (x, values, bias), grad
    )
    x64, w64, b64 = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    exact = torch.autograd.grad(torch.nn.functional.linear(x64, w64, b64), (x64, w64, b64), grad.double())
    in_order = csr.pack(exact[1], mask, 64)[0]
    for got, want, inputs in zip(ours, (exact[0], in_order, exact[2]), (x, values, bias), strict=True):
        assert got.dtype == inputs.dtype
        assert_as_accurate(got, want.to(dtype).to(got.dtype), want)


def test_only_the_wanted_gradients():
    values, crow, col = csr.pack(sparse_weight(5, 6, 0.5))
    x = torch.randn(2, 6)
    y = F.sparse_linear(x, values.requires_grad_(), crow, col, out_features=5, panel=128)
    (dvalues,) = torch.autograd.grad(y.sum(), values)
    assert dvalues.shape == values.shape
    assert not F.sparse_linear(x, values.detach(), crow, col, out_features=5, panel=128).requires_grad
