import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext._checks import INT8_MAX_K
from bigmodel_ext.formats.int8 import pack, unpack
from shapes import MNK, RANDOM, covering
from tolerances import assert_as_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BIAS_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPE_SHAPES = ((1, 64, 16), (1, 130, 33), (8, 65, 64), (97, 192, 70))


def make(m, n, k, dtype=torch.float32, bias_dtype=torch.float32):
    """x, weight_q, weight_scale, bias."""
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype)
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    return (torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]).to(dtype), weight, torch.rand(n) * 0.01, bias


def exact(x, weight, weight_scale, bias):
    """The definition with the sum in int64: float32 multiplied and added in the documented order, rounded once."""
    q, scale = _reference.quantize_rows(x)
    y = (q.long() @ weight.long().T).float() * scale[:, None] * weight_scale
    return (y if bias is None else y + bias.float()).to(x.dtype)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def check(x, weight, weight_scale, bias):
    expected = exact(x, weight, weight_scale, bias)
    assert torch.equal(F.int8_linear(x, weight, weight_scale, bias), expected)
    assert torch.equal(F.int8_linear(x, pack(weight), weight_scale, bias), expected)


@pytest.mark.parametrize(("m", "n", "k"), [*MNK, *RANDOM])
def test_equals_the_definition(isa, m, n, k):
    check(*make(m, n, k, DTYPES[(m + n + k) % 3], BIAS_DTYPES[(m + 2 * n + k) % 5]))


@pytest.mark.parametrize(("dtype", "bias_dtype", "shape"), covering(DTYPES, BIAS_DTYPES, DTYPE_SHAPES))
def test_dtypes(isa, dtype, bias_dtype, shape):
    m, n, k = shape
    check(*make(m, n, k, dtype, bias_dtype))


@pytest.mark.parametrize("k", [2047, 2048, 2049, 5000])
def test_sums_over_blocks_of_k(isa, k):
    check(*make(27, 70, k))


def test_largest_k(isa):
    x = torch.full((2, INT8_MAX_K), 3.0)
    weight = torch.full((3, INT8_MAX_K), -128, dtype=torch.int8)
    check(x, weight, torch.tensor([1.0, 2.0, 3.0]), None)


@pytest.mark.cpu_only(reason="threads that share one call's work")
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 2000, 600), (700, 64, 257), (700, 200, 129), (40, 900, 2500), (450, 140, 2500)]
)
def test_threads_agree(isa, threads, m, n, k):
    """The work is divided by rows and by columns; the last in many blocks for each thread."""
    check(*make(m, n, k))


def test_is_as_accurate_as_its_weights_allow(isa):
    """Against float64 on the same quantized operands, no worse than torch's own float32 product of them."""
    x, weight, weight_scale, bias = make(33, 70, 300)
    q, scale = _reference.quantize_rows(x)
    operands = (q * scale[:, None], weight * weight_scale[:, None], bias)
    truth = torch.nn.functional.linear(
        (q.double() * scale.double()[:, None]), weight * weight_scale.double()[:, None], bias.double()
    )
    assert_as_accurate(F.int8_linear(x, pack(weight), weight_scale, bias), torch.nn.functional.linear(*operands), truth)


def test_special_rows(isa):
    x, weight, weight_scale, bias = make(7, 70, 50)
    x[0] = 0.0
    x[1, 3] = math.nan
    x[2, 49] = math.inf
    x[3, 0] = -math.inf
    x[4] = 1e-42
    expected = exact(x, weight, weight_scale, bias)
    for w in (weight, pack(weight)):
        y = F.int8_linear(x, w, weight_scale, bias)
        assert y.isnan().all(dim=1).tolist() == [False, True, True, True, False, False, False]
        assert torch.equal(y[[0, 4]], bias.expand(2, 70))
        assert same(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_scales_and_biases(isa, dtype):
    x, weight, weight_scale, bias = make(7, 70, 50, dtype)
    weight_scale[:5] = torch.tensor([0.0, math.inf, math.nan, 1e30, 1e-44])
    bias[5:9] = torch.tensor([math.inf, -math.inf, math.nan, 1e30])
    bias.view(torch.int32)[10] = 0x7FFFFFFF  # a NaN that rounding to bfloat16 by adding would turn into -0
    expected = exact(x, weight, weight_scale, bias)
    assert expected[:, 10].isnan().all()
    assert expected.isinf().any()
    assert same(F.int8_linear(x, pack(weight), weight_scale, bias), expected)


def test_leading_dimensions(isa):
    x, weight, weight_scale, bias = make(24, 70, 50)
    expected = exact(x, weight, weight_scale, bias)
    for shape in ((24,), (4, 6), (2, 3, 4), (2, 1, 3, 4)):
        y = F.int8_linear(x.view(*shape, 50), pack(weight), weight_scale, bias)
        assert y.shape == (*shape, 70)
        assert torch.equal(y.view(24, 70), expected)
    assert torch.equal(F.int8_linear(x[5], weight, weight_scale, bias), expected[5])
    assert F.int8_linear(x.view(4, 6, 50)[:0], weight, weight_scale, bias).shape == (0, 6, 70)


def test_strides(isa):
    _, weight, weight_scale, bias = make(1, 70, 50)
    base = torch.randn(120, 120)
    wide = torch.randint(-128, 128, (50, 141), dtype=torch.int8)
    for x in (
        base.T[:9, :50],
        base[::2, 1:101:2],
        base[3:, 7:57],
        base[:1, :50].expand(9, 50),
        base.flatten()[1:501].view(10, 50),
    ):
        for w in (weight, wide.T[1::2], wide.flatten()[3:3503].view(70, 50)):
            args = (w, weight_scale.repeat_interleave(2)[::2], bias[:1].expand(70))
            assert torch.equal(F.int8_linear(x, *args), exact(x, *args))
    packed = pack(weight)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.int8)[1:].view(packed.shape).copy_(packed)
    for p in (shifted, packed.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(
            F.int8_linear(base[:, :50], p, weight_scale, bias), exact(base[:, :50], weight, weight_scale, bias)
        )


@pytest.mark.parametrize(("n", "k"), [(0, 0), (1, 1), (64, 4), (65, 5), (70, 131), (3, 0)])
def test_pack_round_trip(n, k):
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    assert torch.equal(unpack(pack(weight), n, k), weight)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    x, weight, scale, bias = (t.to(device) for t in make(2, 70, 50))
    packed = torch.empty(2, 14, 64, 4, dtype=torch.int8, device=device)
    cases = [
        ((x.double(), weight, scale, bias), TypeError, r"x must be float32.*got float64"),
        ((x[0, 0], weight, scale, bias), ValueError, r"x must have at least 1 dimension"),
        ((x, weight.float(), scale, bias), TypeError, r"weight must be int8, got float32"),
        ((x, weight[:, :49], scale, bias), ValueError, r"weight must have shape \[70, 50\], got \[70, 49\]"),
        ((x, weight[None], scale, bias), ValueError, r"weight must have shape \[70, 50\], got \[1, 70, 50\]"),
        ((x, packed[:1], scale, bias), ValueError, r"packed weight must have shape \[2, 14, 64, 4\], got \[1, 14"),
        ((x[:, :48], packed, scale, bias), ValueError, r"packed weight must have shape \[2, 13, 64, 4\]"),
        ((x, weight, scale.double(), bias), TypeError, r"weight_scale must be float32, got float64"),
        ((x, weight, scale[0], bias), ValueError, r"weight_scale must be \[N\], got shape \[\]"),
        ((x, weight, scale[None], bias), ValueError, r"weight_scale must be \[N\], got shape \[1, 70\]"),
        ((x, weight, scale, bias.int()), TypeError, r"bias must be float32.*got int32"),
        ((x, weight, scale, bias[:9]), ValueError, r"bias must have shape \[70\], got \[9\]"),
    ]  # fmt: skip
    for args, error, message in cases:
        with pytest.raises(error, match=message):
            F.int8_linear(*args)


def test_features_within_the_packing():
    _, weight, scale, bias = make(2, 70, 50)
    for k in (49, 51, 52):
        with pytest.raises(ValueError, match=rf"x must have 50 features in its last dimension, got shape \[3, {k}\]"):
            F.int8_linear(torch.ones(3, k), pack(weight), scale, bias, in_features=50)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_k_too_large(device):
    k = INT8_MAX_K + 1
    x, weight = torch.zeros(1, k, device=device), torch.zeros(1, k, dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match=r"K must be at most 131071 .* got 131072"):
        F.int8_linear(x, weight, torch.ones(1, device=device))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(dtype, packed):
    """That of F.linear with the de-quantized weight, for x and for bias."""
    x, weight, weight_scale, bias = make(9, 70, 50, dtype, dtype)
    gradient = torch.randn(9, 70).to(dtype)
    x.requires_grad_()
    bias.requires_grad_()
    F.int8_linear(x, pack(weight) if packed else weight, weight_scale, bias).backward(gradient)
    wide = [t.detach().double().requires_grad_() for t in (x, bias)]
    torchs = [t.detach().clone().requires_grad_() for t in (x, bias)]
    for (a, b), real in ((wide, torch.float64), (torchs, dtype)):
        dequantized = (weight.double() * weight_scale.double()[:, None]).to(real)
        torch.nn.functional.linear(a, dequantized, b).backward(gradient.to(real))
    for ours, theirs, exact_one in zip((x, bias), torchs, wide, strict=True):
        assert_as_accurate(ours.grad, theirs.grad, exact_one.grad)


@pytest.mark.cpu_only(reason="the interpreter and the emulator run one call at a time")
def test_concurrent_calls(isa):
    shapes = [(1, 70, 40), (90, 130, 300), (7, 64, 2100), (130, 200, 64)] * 2
    work = [make(*shape) for shape in shapes]
    expected = [exact(*args) for args in work]
    with ThreadPoolExecutor(8) as pool:
        for results in [list(pool.map(lambda a: F.int8_linear(*a), work)) for _ in range(5)]:
            assert all(map(torch.equal, results, expected))
