import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats import csr
from shapes import CONVS, RANDOM_CONVS, Conv
from sparse_cases import PANELS, SPARSITIES, sparse_weight
from tolerances import assert_as_accurate

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
op = torch.ops.bigmodel_ext.sparse_conv2d


def make(conv, sparsity=0.5, dtype=torch.float32, values_dtype=torch.float32, channels_last=False):
    """x and the dense weight."""
    x = torch.randn(conv.b, conv.c, *conv.size).to(dtype)
    weight = sparse_weight(conv.n, conv.k, sparsity).to(values_dtype).view(conv.weight_shape)
    return x.to(memory_format=torch.channels_last) if channels_last else x, weight


def run(x, weight, bias, conv, panel=128):
    return op(x, *csr.pack(weight.flatten(1), panel=panel), bias, *conv.window, conv.n, panel)


def dense(x, weight, bias, conv):
    return _reference.conv2d(x, weight, bias, *conv.window[1:])


def check(conv, i):
    """Against float64, and no worse than torch's dense convolution of the same numbers."""
    dtype, last = DTYPES[i % 3], i % 2 == 1
    x, weight = make(conv, SPARSITIES[i % 4], dtype, dtype if i % 5 == 0 else torch.float32, last)
    bias = torch.randn(conv.n) if i % 3 else None
    y = run(x, weight, bias, conv, PANELS[i // 4 % 4])
    exact = dense(x.double(), weight.double(), None if bias is None else bias.double(), conv)
    torchs = dense(x.float(), weight.float(), bias, conv).to(dtype)
    scale = dense(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs(), conv)
    assert_as_accurate(y, torchs, exact, scale=scale.max().item() if scale.numel() else None)
    order = torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
    assert y.stride() == torch.empty(y.shape, memory_format=order).stride(), f"{conv} {x.stride()}"


@pytest.mark.parametrize(("i", "conv"), list(enumerate(CONVS)))
def test_against_float64(float_isa, i, conv):
    check(conv, i)


def test_random_shapes():
    for i, conv in enumerate(RANDOM_CONVS):
        torch.manual_seed(i)
        check(conv, i)


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_and_runs_are_bit_equal(float_isa, channels_last):
    before = torch.get_num_threads()
    for conv in (Conv(c=33, n=130, size=(20, 21)), Conv(b=3, c=128, n=1030, size=(5, 5)), Conv(b=9, c=20, n=40)):
        x, weight = make(conv, channels_last=channels_last)
        try:
            torch.set_num_threads(1)
            single = run(x, weight, None, conv)
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert all(torch.equal(run(x, weight, None, conv), single) for _ in range(5))
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(single, dense(x, weight, None, conv), rtol=1e-4, atol=1e-4)


def test_python_threads_at_once():
    def one(seed):
        conv = Conv(c=5 + seed, n=60 + seed, size=(6 + seed, 30))
        g = torch.Generator().manual_seed(seed)
        x, weight = torch.randn(1, conv.c, *conv.size, generator=g), torch.randn(conv.weight_shape, generator=g)
        first = run(x, weight, None, conv)
        return first, all(torch.equal(run(x, weight, None, conv), first) for _ in range(5)), (x, weight, None, conv)

    with ThreadPoolExecutor(8) as pool:
        for y, repeated, args in pool.map(one, range(8)):
            assert repeated
            assert torch.equal(y, run(*args))


def test_strides(float_isa):
    conv = Conv(b=2, c=20, n=70)
    x, weight = make(conv)
    expected = run(x, weight, None, conv)
    wide = torch.full((4, 25, 20, 30), math.nan)
    wide[::2, 3:23, 4:13, 2:24:2] = x
    for view in (wide[::2, 3:23, 4:13, 2:24:2], torch.stack([x, x], 1)[:, 1]):
        assert torch.equal(run(view, weight, None, conv), expected)
    assert torch.equal(run(x.to(memory_format=torch.channels_last), weight, None, conv), expected)


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_special_numbers_reach_stored_weights_only(float_isa, special):
    """The weight of one output has the window's middle only, that of the other all."""
    conv = Conv(c=1, n=2, size=(5, 20))
    weight = torch.zeros(conv.weight_shape)
    weight[0, 0, 1, 1], weight[1] = 2.0, 1.0
    x = torch.ones(1, 1, 5, 20)
    x[0, 0, 2, 7] = special
    wrong = ~run(x, weight, None, conv)[0].isfinite()
    assert wrong[0].nonzero().tolist() == [[2, 7]]
    assert wrong[1].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (6, 7, 8)]


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bias_dtypes(bias_dtype):
    conv = Conv(n=33)
    x, weight = make(conv)
    bias = torch.randn(33).to(bias_dtype)
    assert torch.equal(run(x, weight, bias, conv), run(x, weight, bias.float(), conv))


@pytest.mark.parametrize("damage", [64, 255])
def test_wrong_columns_stay_inside(float_isa, damage):
    conv = Conv(c=11, n=30)
    x, weight = make(conv)
    values, crow, col = csr.pack(weight.flatten(1), panel=64)
    y = op(x, values, crow, torch.full_like(col, damage), None, *conv.window, conv.n, 64)
    assert y.shape == (1, 30, 9, 11)


def test_functional_takes_numbers_pairs_words_and_single_images():
    conv = Conv(b=2, c=6, n=8, groups=2)
    x, weight = make(conv)
    packed = csr.pack(weight.flatten(1))

    def call(x=x, **kw):
        return F.sparse_conv2d(x, *packed, groups=2, kernel_size=(3, 3), out_channels=8, panel=csr.PANEL, **kw)

    assert torch.equal(call(padding="same"), run(x, weight, None, conv))
    assert torch.equal(call(padding=1, stride=2), call(padding=(1, 1, 1, 1), stride=(2, 2)))
    assert torch.equal(call(x[1]), call()[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd_matches_dense(dtype):
    for conv in (Conv(b=2, c=6, n=8, groups=2, stride=(2, 1)), Conv(b=2, padding=(2, 0, 1, 3), dilation=(1, 2))):
        x, weight = make(conv, dtype=dtype)
        bias, grad = (
            torch.randn(conv.n, requires_grad=True),
            torch.randn_like(dense(x.float(), weight, None, conv)).to(dtype),
        )
        values, crow, col = csr.pack(weight.flatten(1))
        inputs = (x.requires_grad_(), values.requires_grad_(), bias)
        y = op(x, values, crow, col, bias, *conv.window, conv.n, csr.PANEL)
        ours = torch.autograd.grad(y, inputs, grad)
        x64, w64, b64 = (t.detach().double().requires_grad_() for t in (x, weight, bias))
        exact = torch.autograd.grad(dense(x64, w64, b64, conv), (x64, w64, b64), grad.double())
        in_order = csr.pack(exact[1].flatten(1), weight.flatten(1) != 0)[0]
        for got, want, given in zip(ours, (exact[0], in_order, exact[2]), inputs, strict=True):
            assert got.dtype == given.dtype
            assert_as_accurate(got, want.to(dtype).to(got.dtype), want)


def test_second_derivatives():
    conv = Conv(b=1, c=2, n=3, size=(4, 5))
    x, weight = make(conv)
    values, crow, col = csr.pack(weight.flatten(1).double())
    x = x.double().requires_grad_()
    call = lambda x, v: op(x, v, crow, col, None, *conv.window, conv.n, csr.PANEL)  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, values.requires_grad_()))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    conv = Conv(c=4, n=6, groups=2)
    make_ = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = (
        make_(2, 4, 9, 11), make_(3), make_(7, dtype=torch.int32), make_(3, dtype=torch.uint8), None,
        *conv.window, 6, 128,
    )  # fmt: skip
    good[2][1:] = 3
    names = ("x", "values", "crow", "col", "bias", "kernel", "stride", "padding", "dilation", "groups", "n", "panel")

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            op(*(changed.get(name, value) for name, value in zip(names, good, strict=True)))

    refused(TypeError, r"x must be float32.*int32", x=make_(2, 4, 9, 11, dtype=torch.int32))
    refused(TypeError, r"values must be float32.*float16", values=make_(3, dtype=torch.float16))
    refused(ValueError, r"values must.*\[3, 1\]", values=make_(3, 1))
    refused(TypeError, r"crow must be int32, got int64", crow=make_(7, dtype=torch.int64))
    refused(ValueError, r"crow must have shape \[7\], got \[8\]", crow=make_(8, dtype=torch.int32))
    refused(TypeError, r"col must be uint8, got int8", col=make_(3, dtype=torch.int8))
    refused(ValueError, r"col must have shape \[3\], got \[2\]", col=make_(2, dtype=torch.uint8))
    refused(ValueError, r"panel must be in \[1, 256\], got 257", panel=257)
    refused(ValueError, r"the number of outputs must be a multiple of groups=2, got 7", n=7)
    refused(ValueError, r"bias must have shape \[6\], got \[5\]", bias=make_(5))
    refused(ValueError, r"x must be at least as large as the kernel", kernel=(3, 14))
    if device == "cpu":
        crow = good[2].clone()
        crow[3] = 4
        refused(ValueError, r"crow must not decrease, got 4 and then 3 at index 4", crow=crow)


def test_padding_whose_size_overflows():
    values, crow, col = csr.pack(torch.ones(1, 1))
    most = 2**31 - 1  # the padded sides are 2^32: their product is 0 modulo 2^64
    window = {"stride": most, "padding": (most,) * 4, "kernel_size": (1, 1)}
    with pytest.raises(ValueError, match="x is too large with its padding"):
        F.sparse_conv2d(torch.ones(1, 1, 2, 2), values, crow, col, **window, out_channels=1, panel=csr.PANEL)
