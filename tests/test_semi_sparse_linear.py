import math
from itertools import combinations

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext.formats import two_four
from shapes import MNK, covering, random_mnk
from sparse_cases import assert_bit_equal_for_any_threads, assert_takes_any_strides_and_dimensions, two_four_weight
from tolerances import assert_as_accurate, terms

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = tuple(combinations(range(4), 2))
ops = torch.ops.bigmodel_ext


def check_forward_and_gradients(m, n, k, sparsity, dtype, bias=True, values_dtype=torch.float32):
    """Against float64, and no worse than torch's dense product in the same dtype."""
    weight = two_four_weight(n, k, sparsity).to(values_dtype)
    values, index = two_four.pack(weight)
    x, grad = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
    b, w = torch.randn(n) if bias else None, weight.double()
    y = F.semi_sparse_linear(x, values, index, b, out_features=n)
    exact = torch.nn.functional.linear(x.double(), w, None if b is None else b.double())
    torchs = torch.nn.functional.linear(x.float(), weight.float(), b).to(dtype)
    assert_as_accurate(y, torchs, exact, scale=terms(x, w.T) + (b.abs().max().item() if bias and n else 0))
    dx = ops.semi_sparse_linear_grad_input(grad, values, index, k)
    assert_as_accurate(dx, (grad.float() @ weight.float()).to(dtype), grad.double() @ w, scale=terms(grad, w))
    dvalues = ops.semi_sparse_linear_grad_values(grad, x, index)
    stored = two_four.mask_of(index, n, k)
    exact, repacked = two_four.pack(grad.double().T @ x.double(), stored)
    # Where K ends within a group fewer positions are left, which may change the pairs of what is repacked.
    if k % 4 == 0 and n % 32 == 0:
        assert torch.equal(repacked, index)
    got = two_four.unpack(dvalues, index, n, k)
    torchs = torch.where(stored, grad.float().T @ x.float(), 0.0).to(dtype)
    assert_as_accurate(got, torchs, torch.where(stored, grad.double().T @ x.double(), 0.0), scale=terms(grad.T, x))


@pytest.mark.parametrize(("i", "m", "n", "k"), [(i, *s) for i, s in enumerate(MNK)])
def test_against_float64(float_isa, i, m, n, k):
    check_forward_and_gradients(m, n, k, (0.0, 0.5, 1.0)[i // 3 % 3], DTYPES[i % 3], bias=i % 2 == 0)


@pytest.mark.parametrize(("m", "n", "k"), random_mnk(100))
def test_random_shapes(m, n, k):
    seed = m * 90_001 + n * 301 + k
    torch.manual_seed(seed)
    check_forward_and_gradients(m, n, k, (0.0, 0.3, 0.9)[seed % 3], DTYPES[seed % 5 % 3], bias=seed % 2 > 0)


@pytest.mark.parametrize(("dtype", "m"), covering(DTYPES, (1, 2, 3, 4, 12, 24, 40, 64, 100, 140, 200)))
def test_values_of_x_dtype(float_isa, dtype, m):
    """The kernels' groups of rows, and more than are packed at once."""
    check_forward_and_gradients(m, 50, 270, 0.2, dtype, values_dtype=dtype)


@pytest.mark.cpu_only(reason="sizes at which the CPU's kernels divide their work")
@pytest.mark.parametrize("m", [5, 70])
def test_more_tiles_than_a_pass_takes(float_isa, m):
    check_forward_and_gradients(m, 34, 67 * 32 + 5, 0.0, torch.float32)
    check_forward_and_gradients(m, 35 * 32, 34, 0.0, torch.float32)


@pytest.mark.parametrize(("pair", "m"), covering(PAIRS, (1, 5, 90)))
def test_each_of_the_six_patterns(float_isa, pair, m):
    """Position by position, in numbers without rounding."""
    weight = torch.zeros(33, 40)
    for position, factor in zip(pair, (1.0, 64.0), strict=True):
        weight[:, position::4] = factor * torch.randint(1, 5, (33, 10))
    x = torch.randint(-8, 9, (m, 40)).float()
    assert torch.equal(F.semi_sparse_linear(x, *two_four.pack(weight), out_features=33), x @ weight.T)


@pytest.mark.cpu_only(reason="threads that share one call's work")
def test_threads_and_runs_are_bit_equal(float_isa):
    packed = two_four.pack(two_four_weight(331, 517))
    for m in (1, 3, 48, 200):
        x, grad, bias = torch.randn(m, 517), torch.randn(m, 331), torch.randn(331)

        def run(x=x, grad=grad, bias=bias):
            return (
                F.semi_sparse_linear(x, *packed, bias, out_features=331),
                ops.semi_sparse_linear_grad_input(grad, *packed, 517),
                ops.semi_sparse_linear_grad_values(grad, x, packed[1]),
            )

        assert_bit_equal_for_any_threads(run, runs=5)


def test_strides_and_dimensions(float_isa):
    packed = two_four.pack(two_four_weight(19, 37))
    call = lambda x, p, b=None: F.semi_sparse_linear(x, *p, b, out_features=19)  # noqa: E731
    assert_takes_any_strides_and_dimensions(call, packed)


@pytest.mark.parametrize("m", [2, 80])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_numbers_reach_stored_weights_only(float_isa, m, special):
    weight = torch.tensor([[0.0, 3.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    packed = two_four.pack(weight)  # row 2 has one weight: the zero beside it is stored at position 0
    x = torch.ones(m, 4)
    x[1, 0] = special
    y = F.semi_sparse_linear(x, *packed, out_features=3)
    assert y[0].tolist() == [5.0, 1.0, 1.0]
    assert y[1, 0] == 5.0
    assert y[1, 1].isnan() if math.isnan(special) else y[1, 1] == special
    assert y[1, 2].isnan()


def test_what_lies_beyond_the_weight_stays_zero(float_isa):
    _, index = two_four.pack(two_four_weight(20, 21))
    for bad in (1.0, math.nan, math.inf):
        dvalues = ops.semi_sparse_linear_grad_values(torch.full((5, 20), bad), torch.full((5, 21), bad), index)
        assert dvalues[..., 20:].eq(0).all()
        assert dvalues[:, :, 6:].eq(0).all()
        assert dvalues[0, 0, 5, 1].eq(0).all()  # of the last group one position exists; the second weight is beside it
        assert not dvalues[0, 0, :5, :, :20].eq(0).any()


def test_any_index_stays_inside(float_isa):
    """An index that the format does not allow is unspecified, never a stray access."""
    values, index = two_four.pack(two_four_weight(40, 70))
    index = torch.randint_like(index, 256)
    for m in (1, 5, 64):
        x, grad = torch.randn(m, 70), torch.randn(m, 40)
        assert F.semi_sparse_linear(x, values, index, out_features=40).isfinite().all()
        assert ops.semi_sparse_linear_grad_input(grad, values, index, 70).isfinite().all()
        assert ops.semi_sparse_linear_grad_values(grad, x, index).isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    make = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = {
        "x": make(2, 20), "values": make(2, 1, 8, 2, 32), "index": make(2, 1, 32, 4, dtype=torch.uint8),
        "bias": None, "out_features": 40,
    }  # fmt: skip

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            F.semi_sparse_linear(**{**good, **changed})

    refused(TypeError, r"x must be float32.*int32", x=make(2, 20, dtype=torch.int32))
    refused(TypeError, r"values must be float32.*float16", values=make(2, 1, 8, 2, 32, dtype=torch.float16))
    refused(ValueError, r"values must have shape \[2, 1, 8, 2, 32\], got \[1, 1", values=make(1, 1, 8, 2, 32))
    refused(TypeError, r"index must be uint8, got int8", index=make(2, 1, 32, 4, dtype=torch.int8))
    refused(ValueError, r"index must have shape \[2, 1, 32, 4\]", index=make(2, 2, 32, 4, dtype=torch.uint8))
    refused(ValueError, r"have shape \[2, 2", x=make(2, 40))
    refused(ValueError, r"x must have at least 1 dimension", x=make())
    refused(ValueError, r"out_features must not be negative, got -1", out_features=-1)
    refused(ValueError, r"bias must have shape \[40\], got \[3\]", bias=make(3))
    with pytest.raises(ValueError, match=r"in_features must not be negative, got -1"):
        ops.semi_sparse_linear_grad_input(make(2, 40), good["values"], good["index"], -1)
    with pytest.raises(TypeError, match=r"x must be float32, got bfloat16"):
        ops.semi_sparse_linear_grad_values(make(2, 40), make(2, 20, dtype=torch.bfloat16), good["index"])
    with pytest.raises(ValueError, match=r"grad must have"):
        ops.semi_sparse_linear_grad_values(make(3, 40), make(2, 20), good["index"])
    with pytest.raises(ValueError, match=r"index must have shape \[2, 1, 32, 4\], got \[2\]"):
        ops.semi_sparse_linear_grad_values(make(2, 40), make(2, 20), make(2, dtype=torch.uint8))


@pytest.mark.cpu_only("float64 is the reference's, which a forced backend does not fall back to")
def test_gradients_twice_in_float64():
    values, index = two_four.pack(two_four_weight(9, 10).double())
    x = torch.randn(2, 2, 10, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    call = lambda x, v: F.semi_sparse_linear(x, v, index, out_features=9)  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, values), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_matches_dense(float_isa, dtype):
    linear = torch.nn.Linear(68, 64)
    with torch.no_grad():
        linear.weight.copy_(two_four_weight(64, 68))
    layer = bm.nn.SemiSparseLinear.from_dense(linear)
    x, grad = torch.randn(4, 5, 68).to(dtype).requires_grad_(), torch.randn(4, 5, 64).to(dtype)
    ours = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), grad)
    x64, w64, b64 = (t.detach().double().requires_grad_() for t in (x, linear.weight, linear.bias))
    exact = torch.autograd.grad(torch.nn.functional.linear(x64, w64, b64), (x64, w64, b64), grad.double())
    wanted = (exact[0], two_four.pack(exact[1], two_four.mask_of(layer.index, 64, 68))[0], exact[2])
    for got, want, inputs in zip(ours, wanted, (x, layer.values, layer.bias), strict=True):
        assert got.dtype == inputs.dtype
        assert_as_accurate(got, want.to(dtype).to(got.dtype), want)
