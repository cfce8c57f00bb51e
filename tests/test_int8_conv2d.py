import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext._checks import INT8_MAX_K
from bigmodel_ext.formats import int8_conv
from shapes import CONVS, NO_PADDING, RANDOM_CONVS, Conv
from tolerances import assert_as_accurate

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BIAS_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)
op = torch.ops.bigmodel_ext.int8_conv2d


def make(conv, dtype=torch.float32, bias_dtype=torch.float32, channels_last=False):
    """x, weight_q, weight_scale, bias; images of very different size of numbers."""
    x = (torch.randn(conv.b, conv.c, *conv.size) * torch.logspace(-3, 3, conv.b).view(-1, 1, 1, 1)).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    bias = None if bias_dtype is None else torch.randn(conv.n).to(bias_dtype)
    weight = torch.randint(-128, 128, conv.weight_shape, dtype=torch.int8)
    return x, weight, torch.rand(conv.n) * 0.01, bias


def exact(x, weight, weight_scale, bias, conv):
    """The definition, written out: every window of every image as a row, its product in int64; float32 multiplied and
    added in the documented order, rounded once."""
    top, bottom, left, right = conv.padding
    absmax = x.float().abs().amax((1, 2, 3), keepdim=True)
    q = (x.float() * torch.full_like(absmax, 127.0).div(absmax)).round()
    q = torch.nn.functional.pad(q, (left, right, top, bottom))
    windows = torch.nn.functional.unfold(q, conv.kernel, conv.dilation, 0, conv.stride)  # [b, c * kh * kw, pixels]
    windows = windows.view(conv.b, conv.groups, conv.k, -1).long()
    acc = torch.einsum("gnk,bgkp->bgnp", weight.reshape(conv.groups, -1, conv.k).long(), windows)
    y = acc.reshape(conv.b, conv.n, -1).float() * (absmax / 127.0).view(-1, 1, 1) * weight_scale[:, None]
    y = y if bias is None else y + bias.float()[:, None]
    height = (conv.size[0] + top + bottom - conv.dilation[0] * (conv.kernel[0] - 1) - 1) // conv.stride[0] + 1
    return y.to(x.dtype).view(conv.b, conv.n, height, y.shape[2] // height)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def run(x, weight, weight_scale, bias, conv):
    return op(x, int8_conv.pack(weight, conv.groups), weight_scale, bias, *conv.window)


def check(conv, i):
    args = make(conv, DTYPES[i % 3], BIAS_DTYPES[i % 5], channels_last=i % 2 == 1)
    y, expected = (
        run(*args, conv),
        _reference.int8_conv2d(args[0], int8_conv.pack(args[1], conv.groups), *args[2:], *conv.window),
    )
    assert torch.equal(y, expected), f"{conv} {args[0].dtype} {args[0].stride()}"
    assert y.stride() == expected.stride()
    if conv.b:
        assert torch.equal(y, exact(*args, conv)), f"{conv} {args[0].dtype}: the reference is wrong"


@pytest.mark.parametrize(("i", "conv"), list(enumerate(CONVS)))
def test_equals_the_definition(isa, i, conv):
    check(conv, i)


def test_random_shapes():
    for i, conv in enumerate(RANDOM_CONVS):
        torch.manual_seed(i)
        check(conv, i)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias_dtype", BIAS_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(isa, dtype, bias_dtype, channels_last):
    for conv in (Conv(b=2, c=20, n=70), Conv(b=2, c=20, n=20, groups=20), Conv(b=2, c=8, n=12, groups=4)):
        args = make(conv, dtype, bias_dtype, channels_last)
        assert torch.equal(run(*args, conv), exact(*args, conv))


def test_weights_as_rows_are_packed_in_the_call(isa):
    for conv in (Conv(b=2, c=20, n=70), Conv(c=128, n=128, groups=2), Conv(c=9, n=9, groups=9)):
        x, weight, scale, bias = make(conv)
        expected = exact(x, weight, scale, bias, conv)
        rows = _reference.conv_rows(weight)
        assert torch.equal(op(x, rows, scale, bias, *conv.window), expected)
        y = F.int8_conv2d(x, weight, scale, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("c", [227, 228, 229, 600])
def test_sums_over_blocks_of_k(isa, c):
    conv = Conv(c=c, n=70, size=(5, 6))
    args = make(conv)
    assert torch.equal(run(*args, conv), exact(*args, conv))


def test_largest_k(isa):
    conv = Conv(c=INT8_MAX_K, n=2, size=(1, 2), kernel=(1, 1), padding=NO_PADDING)
    x, weight = torch.full((1, INT8_MAX_K, 1, 2), 3.0), torch.full((2, INT8_MAX_K, 1, 1), -128, dtype=torch.int8)
    args = (x, weight, torch.tensor([1.0, 2.0]), None)
    assert torch.equal(run(*args, conv), exact(*args, conv))


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_agree(isa, channels_last):
    before = torch.get_num_threads()
    for conv in (
        Conv(b=1, c=33, n=130, size=(40, 41)), Conv(b=3, c=256, n=256, size=(5, 5)), Conv(b=40, c=20, n=40),
        Conv(b=2, c=70, n=70, groups=70, size=(30, 30)), Conv(b=1, c=64, n=64, groups=8, size=(30, 30)),
        Conv(c=12, n=3, size=(100, 90)),  # an image whose largest number several threads look for
    ):  # fmt: skip
        args = make(conv, channels_last=channels_last)
        args[0][:, -1, -1, -1] *= 20
        expected = exact(*args, conv)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(run(*args, conv), expected)
        finally:
            torch.set_num_threads(before)


def test_python_threads_at_once():
    def one(seed):
        conv = Conv(c=5 + seed, n=60 + seed, size=(6 + seed, 30), b=1 + seed % 3)
        args = make(conv)
        return all(torch.equal(run(*args, conv), exact(*args, conv)) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))


def test_is_as_accurate_as_its_weights_allow(isa):
    """Against float64 on the same quantized operands, no worse than torch's own float32 convolution of them."""
    conv = Conv(b=2, c=20, n=70)
    x, weight, scale, bias = make(conv)
    q, x_scale = _reference.quantize_rows(x.flatten(1))
    x32, w32 = q.view(x.shape) * x_scale.view(-1, 1, 1, 1), weight * scale.view(-1, 1, 1, 1)
    wide = (q.view(x.shape).double() * x_scale.double().view(-1, 1, 1, 1), weight * scale.double().view(-1, 1, 1, 1))
    truth = torch.nn.functional.conv2d(*wide, bias.double(), padding=1)
    assert_as_accurate(run(x, weight, scale, bias, conv), torch.nn.functional.conv2d(x32, w32, bias, padding=1), truth)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("conv", [Conv(b=6, c=20, n=70), Conv(b=6, c=20, n=20, groups=20)])
def test_special_images(isa, conv, channels_last):
    x, weight, scale, bias = make(conv, channels_last=channels_last)
    x[0] = 0.0
    x[1, 3, 2, 1], x[2, -1, -1, -1], x[3, 0, 0, 0] = math.nan, math.inf, -math.inf
    x[4] = 1e-42
    y = run(x, weight, scale, bias, conv)
    nan = y.isnan()
    assert nan.flatten(1).all(1).tolist() == [False, True, True, True, False, False]
    assert not nan[[0, 4, 5]].any()
    assert torch.equal(y[[0, 4]], bias.view(-1, 1, 1).expand_as(y[[0, 4]]))
    assert same(y, _reference.int8_conv2d(x, int8_conv.pack(weight, conv.groups), scale, bias, *conv.window))


def test_padding_is_exactly_zero():
    """A constant image: outputs at the edge are smaller by exactly the window's weights outside."""
    conv = Conv(c=2, n=3, size=(4, 4))
    weight = torch.randint(-128, 128, conv.weight_shape, dtype=torch.int8)
    y = run(torch.full((1, 2, 4, 4), 127.0), weight, torch.ones(3), None, conv)
    assert torch.equal(y[0, :, 1, 1], 127.0 * weight.sum((1, 2, 3)))
    assert torch.equal(y[0, :, 0, 0], 127.0 * weight[:, :, 1:, 1:].sum((1, 2, 3)))


def test_memory_formats_and_strides(isa):
    conv = Conv(b=2, c=20, n=70)
    x, weight, scale, bias = make(conv)
    expected = exact(x, weight, scale, bias, conv)
    last = run(x.to(memory_format=torch.channels_last), weight, scale, bias, conv)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)
    wide = torch.full((4, 25, 20, 30), math.nan)
    wide[::2, 3:23, 4:13, 2:24:2] = x
    doubled = torch.stack([x, x], 1)[:, 1]
    for view in (wide[::2, 3:23, 4:13, 2:24:2], doubled, x.transpose(2, 3).contiguous().transpose(2, 3)):
        y = run(view, weight, scale, bias, conv)
        assert torch.equal(y, expected)
        assert y.is_contiguous()
    assert torch.equal(run(x[:1].expand(2, -1, -1, -1), weight, scale, bias, conv), torch.cat([expected[:1]] * 2))
    packed = int8_conv.pack(weight)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.int8)[1:].view(packed.shape).copy_(packed)
    every = (shifted, scale.repeat_interleave(2)[::2], bias.repeat_interleave(2)[::2])
    assert torch.equal(op(x, *every, *conv.window), expected)


def test_arguments_as_numbers_pairs_and_words():
    x, weight, scale, bias = make(Conv(b=2, c=6, n=8, groups=2, size=(12, 13)))
    q = lambda **kw: F.int8_conv2d(x, weight, scale, bias, groups=2, **kw)  # noqa: E731
    assert torch.equal(q(stride=2, padding=1), q(stride=(2, 2), padding=(1, 1, 1, 1)))
    assert torch.equal(q(padding=(1, 2)), q(padding=(1, 1, 2, 2)))
    assert torch.equal(q(padding="valid"), q())
    even = F.int8_conv2d(x, weight[..., :2], scale, bias, groups=2, dilation=(1, 3), padding="same")
    assert even.shape[2:] == x.shape[2:]
    assert torch.equal(
        even, F.int8_conv2d(x, weight[..., :2], scale, bias, groups=2, dilation=(1, 3), padding=(1, 1, 1, 2))
    )
    assert torch.equal(F.int8_conv2d(x[1], weight, scale, bias, groups=2), q()[1])
    with pytest.raises(ValueError, match="padding 'same' needs stride 1, got"):
        q(stride=2, padding="same")
    with pytest.raises(ValueError, match="padding must be numbers, 'same' or 'valid', got 'full'"):
        q(padding="full")
    for numbers in ((1,), (1, 2, 3), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"padding must be a number, \(height, width\) or .*, got \[1"):
            q(padding=numbers)
    with pytest.raises(ValueError, match="kernel_size must be given with a packed weight"):
        F.int8_conv2d(x, int8_conv.pack(weight, 2), scale, bias, groups=2)
    with pytest.raises(ValueError, match=r"kernel_size must be the weight's, \[.*, got \[1, 1\]"):
        q(kernel_size=(1, 1))


def test_channels_within_the_packing():
    weight, scale = torch.ones(5, 6, 1, 1, dtype=torch.int8), torch.ones(5)
    packed = int8_conv.pack(weight)
    for c in (5, 7, 8):
        with pytest.raises(ValueError, match=rf"x must be .* with C = 6 channels, got shape \[2, {c}, 3, 3\]"):
            F.int8_conv2d(torch.ones(2, c, 3, 3), packed, scale, kernel_size=(1, 1), in_channels=6)


@pytest.mark.parametrize("groups", [1, 2, 4, 64, 128])
def test_pack_round_trip(groups):
    for kernel in ((1, 1), (3, 2)):
        weight = torch.randint(-128, 128, (128, 128 // groups, *kernel), dtype=torch.int8)
        packed = int8_conv.pack(weight, groups)
        assert torch.equal(int8_conv.unpack(packed, 128, kernel, 128 // groups), weight)
        assert tuple(packed.shape) == int8_conv.packed_shape(128, weight[0].numel(), groups)
        assert packed.numel() <= weight.numel() + 2 * (256 + 3 * 64)  # two panels' sums, and K to a multiple of 4
    with pytest.raises(ValueError, match="multiple of groups=3 outputs, got 128"):
        int8_conv.pack(weight, 3)
    with pytest.raises(TypeError, match="weight_q must be int8"):
        int8_conv.pack(weight.float())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    conv = Conv(b=2, c=6, n=8, groups=2)
    x, weight, scale, bias = (t.to(device) for t in make(conv))
    rows = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
    good = (x, rows, scale, bias, *conv.window)

    def refused(error, match, **changed):
        names = ("x", "weight", "scale", "bias", "kernel", "stride", "padding", "dilation", "groups")
        with pytest.raises(error, match=match):
            op(*(changed.get(name, value) for name, value in zip(names, good, strict=True)))

    refused(TypeError, r"x must be float32.*got float64", x=x.double())
    refused(ValueError, r"x must have 4 dimensions, got shape \[6, 9, 11\]", x=x[0])
    refused(ValueError, r"x must have a multiple of groups=2 channels", x=x[:, :5])
    refused(ValueError, r"x must have pixels", x=x[:, :, :0])
    refused(TypeError, r"weight must be int8, got float32", weight=rows.float())
    refused(ValueError, r"weight must have shape \[8, 27\], got \[8, 26\]", weight=rows[:, :26])
    packed = torch.empty(2, 1, 7, 64, 4, dtype=torch.int8, device=device)
    refused(ValueError, r"packed weight must have shape \[2, 1, 8, 64, 4\], got \[2, 1, 7", weight=packed)
    refused(TypeError, r"weight_scale must be float32", scale=scale.double())
    refused(ValueError, r"the number of outputs must be a multiple of groups=2, got 7", scale=scale[:7])
    refused(TypeError, r"bias must be float32.*got int32", bias=bias.int())
    refused(ValueError, r"bias must have shape \[8\], got \[7\]", bias=bias[:7])
    refused(ValueError, r"kernel_size must be .*at least 1", kernel=(0, 3))
    refused(ValueError, r"stride must be .*at least 1", stride=(1, 0))
    refused(ValueError, r"padding must be .*at least 0", padding=(0, 0, -1, 0))
    refused(ValueError, r"dilation must be .*at least 1", dilation=(0, 1))
    refused(ValueError, r"groups must be .*at least 1", groups=0)
    refused(ValueError, r"x must be at least as large as the kernel, got padded 11x13", kernel=(12, 3))
    refused(ValueError, r"got padded 11x13.*dilation.* 7", dilation=(1, 7))
    if device == "cpu":
        huge = {"weight": torch.zeros(1, 1, dtype=torch.int8), "scale": scale[:1], "bias": None, "kernel": (1, 1)}
        most = 2**31 - 1  # the padded sides are 2^32: their product is 0 modulo 2^64
        huge |= {"x": torch.ones(1, 1, 2, 2), "stride": (most, most), "padding": (most,) * 4, "groups": 1}
        refused(ValueError, r"x is too large with its padding", **huge)
    refused(ValueError, r"131071.*exact int32 sum, got 131400", kernel=(6, 7300), padding=(0, 0, 9999, 0))
