"""binary_coded_linear: every instruction set against the reference, bit for bit, and both against the definition."""

import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _dispatch, _reference
from bigmodel_ext import functional as F
from bigmodel_ext._checks import INT8_MAX_K
from bigmodel_ext.formats import binary_coded as format
from bigmodel_ext.functional import binary_coded_linear
from binary_cases import make
from shapes import INTERPRETED, MNK, RANDOM, covering
from tolerances import assert_as_accurate, terms
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BIAS_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)
GROUPS = (8, 16, 24, 32, 64, 104, 128, 256, 264, 1024)  # about the words of 16 inputs and the int16 sums of 256
SHAPES = [*MNK, *RANDOM[::5]]


def ours(*args):
    return torch.ops.bigmodel_ext.binary_coded_linear(*args)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """But where a test asks for more."""


def check(args):
    assert torch.equal(ours(*args), _reference.binary_coded_linear(*args))


def by_definition(x, packed, scales, bias, n, group_size):
    """With the inner sums in int64, written out: one output at a time would take too long, one plane does not."""
    k = x.shape[-1]
    spins = format.unpack(format.from_panels(packed, n, k, group_size), k)
    alpha = format.scales_from_panels(scales, n)
    q, scale = _reference.quantize_rows(x)
    z = torch.zeros(len(x), n)
    for g in range(alpha.shape[1]):
        inputs = range(g * group_size, min(k, (g + 1) * group_size))
        for b in range(alpha.shape[2]):
            z = z + alpha[:, g, b].float() * (q[:, inputs].long() @ spins[:, b, inputs].long().T).float()
    y = z * scale[:, None]
    return (y if bias is None else y + bias.float()).to(x.dtype)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_equals_the_reference(float_isa, m, n, k):
    i = m + 3 * n + 7 * k
    check(make(m, n, k, i % 8 + 1, GROUPS[i % len(GROUPS)], DTYPES[i % 3], BIAS_DTYPES[i % 5]))


@pytest.mark.parametrize(("bits", "group_size"), covering(range(1, 9), GROUPS))
def test_bits_and_groups(float_isa, bits, group_size):
    for m in (1, 5) if INTERPRETED else (1, 2, 5):
        check(make(m, 70, 300 if INTERPRETED else 600, bits, group_size))


@pytest.mark.parametrize("bits", range(1, 9))
def test_one_row_of_many_inputs(float_isa, bits):
    """Whose tables are kept small."""
    for group_size in (1024,) if INTERPRETED else (64, 24, 1024):
        check(make(1, 70, 2001, bits, group_size))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 7, 5), (4, 66, 70), (3, 130, 300)])
def test_the_reference_is_the_definition(m, n, k):
    for bits, group_size in ((1, 8), (3, 64), (4, 24)):
        args = make(m, n, k, bits, group_size)
        assert torch.equal(_reference.binary_coded_linear(*args), by_definition(*args))


@pytest.mark.parametrize(("dtype", "bias_dtype"), covering(DTYPES, BIAS_DTYPES))
def test_dtypes(float_isa, dtype, bias_dtype):
    for m, n, k in ((1, 64, 16), (1, 130, 33), (8, 65, 64)):
        check(make(m, n, k, 2, 16, dtype, bias_dtype))


def test_largest_sums(float_isa):
    """All inputs 127 and all signs +1 or all -1: the int16 sums of a piece, and the int32 sums of a group, are at their
    ends."""
    x = torch.full((3, 1000), 2.0)
    for sign in (-1, 1):
        signs = format.pack(torch.full((70, 2, 1000), sign, dtype=torch.int8))
        for group_size in (256, 512, 1000):
            alpha = torch.ones(70, -(-1000 // group_size), 2, dtype=torch.float16)
            args = x, format.to_panels(signs, 1000, group_size), format.scales_to_panels(alpha), None, 70, group_size
            assert torch.equal(ours(*args), torch.full((3, 70), 2.0 * 2 * 1000 * sign))


def test_largest_k(float_isa):
    group_size = -(-INT8_MAX_K // 8) * 8
    signs = format.pack(torch.ones(3, 1, INT8_MAX_K, dtype=torch.int8))
    scales = format.scales_to_panels(torch.ones(3, 1, 1, dtype=torch.float16))
    packed = format.to_panels(signs, INT8_MAX_K, group_size)
    check((torch.full((2, INT8_MAX_K), 3.0), packed, scales, None, 3, group_size))
    x = torch.zeros(1, INT8_MAX_K + 1)  # still one group, and as many words
    with pytest.raises(ValueError, match=f"K must be at most {INT8_MAX_K} for an exact .*, got {INT8_MAX_K + 1}"):
        ours(x, packed, scales, None, 3, group_size)


@pytest.mark.cpu_only(reason="threads that share one call's work")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 2000, 600), (70, 300, 500), (9, 200, 5000)])
def test_threads_agree(float_isa, threads, m, n, k):
    """The work is divided by rows and by outputs; the last in several blocks of rows and pieces of K."""
    check(make(m, n, k, 3, 128))


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_as_accurate_as_its_weights_allow(float_isa, dtype):
    """Against float64 on the same quantized operands, no worse than torch's own product of them."""
    x, packed, scales, bias, n, group_size = args = make(33, 70, 300, 3, 64, dtype)
    q, scale = _reference.quantize_rows(x)
    signs = format.from_panels(packed, n, 300, group_size)
    weight = format.decode(signs, format.scales_from_panels(scales, n), 300, group_size)
    rounded = (q * scale[:, None]), weight, bias
    truth = nn.functional.linear(q.double() * scale.double()[:, None], weight.double(), bias.double())
    torchs = nn.functional.linear(*rounded).to(dtype)
    assert_as_accurate(ours(*args), torchs, truth, terms(rounded[0], weight.T))


def test_special_rows(float_isa):
    x, packed, scales, bias, n, size = make(7, 70, 50, 2, 16)
    x[0] = 0.0
    x[1, 3] = math.nan
    x[2, 49] = math.inf
    x[3, 0] = -math.inf
    x[4] = 1e-42
    y = ours(x, packed, scales, bias, n, size)
    assert y.isnan().all(dim=1).tolist() == [False, True, True, True, False, False, False]
    assert torch.equal(y[[0, 4]], bias.expand(2, 70))
    assert same(y, _reference.binary_coded_linear(x, packed, scales, bias, n, size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_scales_and_biases(float_isa, dtype):
    x, packed, scales, bias, n, size = make(7, 70, 50, 2, 16, dtype)
    alpha = format.scales_from_panels(scales, n)
    alpha[:6, 1, 0] = torch.tensor([0.0, math.inf, math.nan, 60000.0, 6e-8, -0.0])
    bias[6:9] = torch.tensor([math.inf, -math.inf, math.nan])
    args = x, packed, format.scales_to_panels(alpha), bias, n, size
    y = ours(*args)
    assert same(y, _reference.binary_coded_linear(*args))
    assert y[:, [2, 8]].isnan().all()
    assert y[:, 9:].isfinite().all(), "one output's scales reach another's result"


@pytest.mark.parametrize("activation", [a for a in F.ACTIVATIONS if a != "none"])
def test_activation(float_isa, activation):
    args = make(5, 70, 100, 3, 32)
    plain = ours(*args)
    expected = _reference.activate(plain.double(), activation)
    assert_as_accurate(ours(*args, activation), _reference.activate(plain, activation), expected)


def test_leading_dimensions(float_isa):
    x, *rest = make(24, 70, 50)
    expected = _reference.binary_coded_linear(x, *rest)
    for shape in ((24,), (4, 6), (2, 3, 4), (2, 1, 3, 4)):
        y = ours(x.view(*shape, 50), *rest)
        assert y.shape == (*shape, 70)
        assert torch.equal(y.view(24, 70), expected)
    assert torch.equal(ours(x[5], *rest), expected[5])
    assert ours(x.view(4, 6, 50)[:0], *rest).shape == (0, 6, 70)


def test_strides(float_isa):
    _, packed, scales, bias, n, size = make(1, 70, 50)
    base = torch.randn(120, 120)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:].view(packed.shape).copy_(packed)
    strided = packed.transpose(1, 2).contiguous().transpose(1, 2)
    for x in (base.T[:9, :50], base[::2, 1:101:2], base[3:, 7:57], base[:1, :50].expand(9, 50)):
        for p in (packed, shifted, strided):
            args = x, p, scales.transpose(0, 3).contiguous().transpose(0, 3), bias[:1].expand(70), n, size
            assert torch.equal(ours(*args), _reference.binary_coded_linear(*args))


def test_what_pads_does_not_matter(float_isa):
    """Signs beyond K, and outputs beyond N, are there for the kernel's convenience."""
    x, packed, scales, bias, n, size = make(3, 70, 50, 2, 24)
    spins = format.unpack(format.from_panels(packed, n, 50, size), 50)
    other = torch.full_like(packed, 0xFF)
    signs = torch.nn.functional.pad(spins, (0, 6), value=1)
    byte = (signs.view(70, 2, 7, 8) > 0).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)
    filled = format.to_panels(byte.sum(-1, dtype=torch.uint8), 50, size)
    filled[1, ..., 6:, :] = other[1, ..., 6:, :]
    assert not torch.equal(filled, packed)
    assert torch.equal(ours(x, filled, scales, bias, n, size), ours(x, packed, scales, bias, n, size))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    x, packed, scales, bias, n, size = (t.to(device) if torch.is_tensor(t) else t for t in make(2, 70, 50, 2, 16))
    cases = [
        ((x.double(), packed, scales, bias, n, size), TypeError, r"x must be float32.*got float64"),
        ((x[0, 0], packed, scales, bias, n, size), ValueError, r"x must have at least 1 dimension"),
        ((x, packed.int(), scales, bias, n, size), TypeError, r"packed must be uint8, got int32"),
        (
            (x, packed[0], scales, bias, n, size),
            ValueError,
            r"packed must have 5 dimensions, got shape \[4, 2, 64, 2\]",
        ),
        ((x, packed[:, 1:], scales, bias, n, size), ValueError, r"packed must have shape \[2, 4, 2, 64, 2\]"),
        ((x, packed, scales.float(), bias, n, size), TypeError, r"scales must be float16, got float32"),
        ((x, packed, scales[:, :3], bias, n, size), ValueError, r"scales must have shape \[2, 4, 2, 64\]"),
        ((x, packed, scales, bias[:69], n, size), ValueError, r"bias must have shape \[70\], got \[69\]"),
        ((x, packed, scales, bias.int(), n, size), TypeError, r"bias must be float32.*got int32"),
        (
            (x, packed, scales, None, 200, size),
            ValueError,
            r"packed must have shape \[4, 4, 2, 64, 2\], got \[2, 4, 2, 64, 2\]",
        ),
        ((x, packed, scales, None, -1, size), ValueError, r"out_features must not be negative, got -1"),
        ((x, packed, scales, bias, n, 12), ValueError, r"group_size must be a positive multiple of 8, got 12"),
        ((x, packed, scales, bias, n, 0), ValueError, r"group_size must be a positive multiple of 8, got 0"),
        ((x, packed[:, :, :0], scales, bias, n, size), ValueError, r"bits must be in \[1, 8\], got 0"),
        ((x, packed, scales, bias, n, size, "swish"), ValueError, r"activation must be one of .*swish"),
    ]
    for args, error, match in cases:
        with pytest.raises(error, match=match):
            ours(*args)
    with pytest.raises(ValueError, match=r"x must have 51 features in its last dimension"):
        binary_coded_linear(x, packed, scales, bias, out_features=n, group_size=size, in_features=51)


@pytest.mark.cpu_only("instruction sets")
def test_a_kernel_runs(isa):
    args = make(1, 70, 50)
    choice = _dispatch.explain("binary_coded_linear", *args)
    assert (choice.backend, choice.isa) == ("cpu", isa if isa in ("scalar", "avx2") else "avx512")


@pytest.mark.parametrize("group_size", [1 << 20, 1 << 59, (1 << 63) - 8])
def test_a_group_of_more_than_all_inputs_is_one_of_all(isa, group_size):
    """The largest once overflowed to a division by zero, which kills the process."""
    torch.manual_seed(0)
    small = bm.nn.BinaryCodedLinear.from_float(nn.Linear(40, 70), bits=8, group_size=40)
    large = bm.nn.BinaryCodedLinear(40, 70, bits=8, group_size=group_size)
    large.load_state_dict(small.state_dict())
    for rows in (1, 5):
        x = torch.randn(rows, 40)
        assert torch.equal(large(x), small(x))
