import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats import block, csr
from shapes import INTERPRETED, MNK, RANDOM, covering
from sparse_cases import PANELS, SPARSITIES, int8_block_weight, refused_when_read, strange_views

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def packed_weight(weight, panel, sort=False):
    *packed, row_sum = block.pack(weight, panel)
    n = weight.shape[0]
    values, crow, col, order = csr.sort_rows(*packed, n) if sort else (*packed, None)
    return {
        "values": values, "crow": crow, "col": col, "weight_scale": torch.rand(n) + 0.1,
        "row_sum": row_sum, "panel": panel, "order": order,
    }  # fmt: skip


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))


def check(m, n, k, sparsity, panel, dtype, bias=True, sort=False):
    """Bit for bit the reference, and the reference's int8_linear on the dense weight."""
    weight = int8_block_weight(n, k, sparsity)
    w = packed_weight(weight, panel, sort)
    x = (torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]).to(dtype)
    if m > 2 and k:
        x[m // 2, k // 2] = (math.nan, math.inf, 0.0)[m % 3]
        x[m - 1] = 0
    b = torch.randn(n) if bias else None
    y = F.int8_sparse_linear(x, **w, bias=b)
    assert same(y, _reference.int8_linear(x, weight, w["weight_scale"], b))
    nan_rows = ~x.float().isfinite().all(1)
    assert y[nan_rows].isnan().all()
    assert n == 0 or not y[~nan_rows].isnan().any()


@pytest.mark.parametrize(("i", "m", "n", "k"), [(i, *s) for i, s in enumerate(MNK)])
def test_equals_the_reference(isa, i, m, n, k):
    check(m, n, k, SPARSITIES[i % 4], PANELS[i // 4 % 4], DTYPES[i % 3], bias=i % 2 == 0)


@pytest.mark.parametrize(("m", "n", "k"), RANDOM)
def test_random_shapes(m, n, k):
    seed = m * 90_001 + n * 301 + k
    torch.manual_seed(seed)
    panel = (1, 3, 64, 100, 128, 200, 256)[seed % 7]
    check(m, n, k, SPARSITIES[seed % 4], panel, DTYPES[seed % 3], bias=seed % 5 != 0, sort=seed % 2 == 0)


@pytest.mark.parametrize(
    ("shape", "sparsity"), covering(((40, 1200, 128), (700, 360, 64), (1100, 800, 256)), (0.3, 0.9))
)
def test_sorted_rows(isa, shape, sparsity):
    n, k, panel = shape
    for i, m in enumerate((2, 20) if INTERPRETED else (1, 2, 20, 40, 50, 64, 130)):
        check(m, n, k, sparsity, panel, DTYPES[i % 3], sort=True)


@pytest.mark.parametrize(("sparsity", "panel"), covering(SPARSITIES, PANELS))
def test_sparsities_and_panels(isa, sparsity, panel):
    check(67, 70, 1200, sparsity, panel, torch.float32)
    check(2, 70, 1200, sparsity, panel, torch.float32)


@pytest.mark.parametrize(("m", "sign"), [(16, -1)] if INTERPRETED else [(1, 1), (1, -1), (16, 1), (16, -1)])
def test_extremes_at_the_longest_row(isa, m, sign):
    k = _K = 131_071
    weight = torch.full((2, k), -128, dtype=torch.int8)
    weight[1] = 127
    w = packed_weight(weight, 256)
    x = torch.full((m, k), sign * 3.5)
    y = F.int8_sparse_linear(x, **w)
    acc = (torch.tensor([-128, 127], dtype=torch.int64) * 127 * sign * _K).float()
    expected = (acc * (torch.tensor(3.5) / 127) * w["weight_scale"]).expand(m, 2)
    assert torch.equal(y, expected)
    with pytest.raises(ValueError, match=r"K must be at most 131071 .*got 131072"):
        F.int8_sparse_linear(torch.ones(1, k + 1), **w)


@pytest.mark.cpu_only(reason="threads that share one call's work")
def test_threads_and_runs_are_bit_equal(isa):
    weight = int8_block_weight(331, 517, 0.7)
    w = packed_weight(weight, 128)
    before = torch.get_num_threads()
    try:
        for m in (1, 3, 48, 70, 200):
            x = torch.randn(m, 517)
            torch.set_num_threads(1)
            single = F.int8_sparse_linear(x, **w)
            for count in (2, 3):
                torch.set_num_threads(count)
                for _ in range(10):
                    assert torch.equal(F.int8_sparse_linear(x, **w), single)
    finally:
        torch.set_num_threads(before)


@pytest.mark.cpu_only(reason="the interpreter and the emulator run one call at a time")
def test_python_threads_at_once():
    cases = []
    for seed in range(8):
        weight = int8_block_weight(60 + seed, 40 + 100 * seed, 0.5)
        cases.append((torch.randn(5 + 9 * seed, 40 + 100 * seed), packed_weight(weight, 128)))
    expected = [F.int8_sparse_linear(x, **w) for x, w in cases]

    def one(i):
        x, w = cases[i]
        return all(torch.equal(F.int8_sparse_linear(x, **w), expected[i]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))


def test_strides_and_dimensions(isa):
    w = packed_weight(int8_block_weight(19, 37, 0.5), 4)
    x, bias = torch.randn(24, 37), torch.randn(19)
    expected = F.int8_sparse_linear(x, **w, bias=bias)
    for name, view in strange_views(x).items():
        assert torch.equal(F.int8_sparse_linear(view, **w, bias=bias), expected), name
    stepped = {k: torch.stack([t, t], 1)[:, 0] if isinstance(t, torch.Tensor) else t for k, t in w.items()}
    assert torch.equal(F.int8_sparse_linear(x, **stepped, bias=torch.stack([bias, bias], 1)[:, 1]), expected)
    assert torch.equal(F.int8_sparse_linear(x[:1].expand(9, 37), **w), F.int8_sparse_linear(x[:1].repeat(9, 1), **w))
    for shape in ((37,), (1, 37), (4, 6, 37), (2, 3, 4, 37), (2, 1, 3, 4, 37), (0, 3, 37)):
        m = math.prod(shape[:-1])
        y = F.int8_sparse_linear(x[:m].reshape(shape), **w, bias=bias)
        assert y.shape == (*shape[:-1], 19)
        assert torch.equal(y.reshape(m, 19), expected[:m])


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bias_dtypes(isa, bias_dtype):
    w = packed_weight(int8_block_weight(33, 40, 0.5), 128)
    x, bias = torch.randn(6, 40), torch.randn(33).to(bias_dtype)
    assert torch.equal(F.int8_sparse_linear(x, **w, bias=bias), F.int8_sparse_linear(x, **w, bias=bias.float()))


@pytest.mark.parametrize("m", [1, 5, 64])
def test_wrong_columns_stay_inside(isa, m):
    w = packed_weight(int8_block_weight(30, 280, 0.3), 64)
    x = torch.randn(m, 280)
    for col in (torch.full_like(w["col"], 255), torch.randint_like(w["col"], 256)):
        with refused_when_read():
            assert F.int8_sparse_linear(x, **{**w, "col": col}).shape == (m, 30)


@pytest.mark.cpu_only(reason="to look at indices would wait for the device")
def test_damaged_crow_is_refused(isa):
    w = packed_weight(torch.ones((3, 4), dtype=torch.int8), 8)
    for crow, message in (
        ([1, 1, 2, 3], "crow must begin with 0, got 1"),
        ([0, 1, 2, 4], "crow must end with the number of values, 3, got 4"),
        ([0, 2, 1, 3], "crow must not decrease, got 2 and then 1 at index 2"),
    ):
        with pytest.raises(ValueError, match=message):
            F.int8_sparse_linear(torch.ones(2, 4), **{**w, "crow": torch.tensor(crow, dtype=torch.int32)})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    make = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = {
        "x": make(2, 6), "values": make(3, 4, dtype=torch.int8), "crow": make(5, dtype=torch.int32),
        "col": make(3, dtype=torch.uint8), "weight_scale": make(4), "row_sum": make(4, dtype=torch.int32), "panel": 8,
    }  # fmt: skip

    good["crow"][1:] = 3

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            F.int8_sparse_linear(**{**good, **changed})

    refused(TypeError, r"x must be float32.*float64", x=make(2, 6, dtype=torch.float64))
    refused(TypeError, r"values must be int8, got float32", values=make(3, 4))
    refused(ValueError, r"values must be \[blocks,4\], got shape \[3\]", values=make(3, dtype=torch.int8))
    refused(ValueError, r"values must be \[blocks,4\], got shape \[4, 3\]", values=make(4, 3, dtype=torch.int8))
    refused(TypeError, r"weight_scale must be float32, got float16", weight_scale=make(4, dtype=torch.float16))
    refused(TypeError, r"row_sum must be int32, got int64", row_sum=make(4, dtype=torch.int64))
    refused(ValueError, r"row_sum must have .*\[5\]", row_sum=make(5, dtype=torch.int32))
    refused(TypeError, r"crow must be int32, got int64", crow=make(5, dtype=torch.int64))
    refused(ValueError, r"crow must have shape \[5\], got \[6\]", crow=make(6, dtype=torch.int32))
    refused(TypeError, r"col must be uint8, got int8", col=make(3, dtype=torch.int8))
    refused(ValueError, r"col must have shape \[3\], got \[2\]", col=make(2, dtype=torch.uint8))
    refused(ValueError, r"x must have at least 1 dimension", x=make())
    refused(ValueError, r"panel must be in \[1, 256\], got 300", panel=300)
    refused(ValueError, r"bias must have shape \[4\], got \[3\]", bias=make(3))


def test_gradients_to_input_and_bias(isa):
    weight = int8_block_weight(30, 71, 0.5)
    w = packed_weight(weight, 16)
    x, bias = torch.randn(4, 5, 71, requires_grad=True), torch.randn(30, requires_grad=True)
    grad = torch.randn(4, 5, 30)
    dx, dbias = torch.autograd.grad(F.int8_sparse_linear(x, **w, bias=bias), (x, bias), grad)
    dense = weight.double() * w["weight_scale"].double()[:, None]
    torch.testing.assert_close(dx.double(), grad.double() @ dense, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(dbias.double(), grad.double().sum((0, 1)), rtol=1e-5, atol=1e-5)
