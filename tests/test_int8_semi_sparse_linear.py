import math
from itertools import combinations

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats import two_four
from shapes import MNK, random_mnk
from sparse_cases import strange_views, two_four_weight

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "leaky_relu", "softplus")


def two_four_int8(n, k, sparsity=0.0):
    """int8 [N,K], at most two of every four not 0, the extremes -128 and 127 frequent."""
    q = torch.randint(-140, 140, (n, k)).clamp(-128, 127)
    return torch.where(two_four_weight(n, k, sparsity) != 0, q, 0).to(torch.int8)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))


def check(m, n, k, sparsity, dtype, bias=True):
    """Bit for bit the reference's int8_linear on the dense weight."""
    weight, scale = two_four_int8(n, k, sparsity), torch.rand(n) + 0.1
    packed = two_four.pack_int8(weight)
    assert torch.equal(two_four.unpack_int8(*packed, n, k), weight)
    x = (torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]).to(dtype)
    if m > 2 and k:
        x[m // 2, k // 2] = (math.nan, math.inf, 0.0)[m % 3]
        x[m - 1] = 0
    b = torch.randn(n) if bias else None
    assert same(F.int8_semi_sparse_linear(x, *packed, scale, b), _reference.int8_linear(x, weight, scale, b))


@pytest.mark.parametrize(("i", "m", "n", "k"), [(i, *s) for i, s in enumerate(MNK)])
def test_equals_the_reference(isa, i, m, n, k):
    check(m, n, k, (0.0, 0.5, 1.0)[i // 3 % 3], DTYPES[i % 3], bias=i % 2 == 0)


@pytest.mark.parametrize(("m", "n", "k"), random_mnk(60))
def test_random_shapes(m, n, k):
    seed = m * 90_001 + n * 301 + k
    torch.manual_seed(seed)
    check(m, n, k, (0.0, 0.3, 0.9)[seed % 3], DTYPES[seed % 5 % 3], bias=seed % 2 > 0)


@pytest.mark.parametrize("m", [1, 5, 90])
@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
def test_each_of_the_six_patterns(isa, pair, m):
    weight = torch.zeros(33, 40, dtype=torch.int8)
    for position, factor in zip(pair, (1, 25), strict=True):
        weight[:, position::4] = factor * torch.randint(1, 5, (33, 10))
    x = torch.randint(-8, 9, (m, 40)).float()
    x[:, 0] = 127  # the scale is 1
    y = F.int8_semi_sparse_linear(x, *two_four.pack_int8(weight), torch.ones(33))
    assert torch.equal(y, x @ weight.float().T)


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_at_the_longest_row(isa, sign):
    k = 131_071
    weight = torch.zeros(2, k, dtype=torch.int8)
    weight[0, ::2], weight[1, 1::2] = -128, 127
    packed, scale, x = two_four.pack_int8(weight), torch.rand(2), torch.full((2, k), sign * 3.5)
    assert same(F.int8_semi_sparse_linear(x, *packed, scale), _reference.int8_linear(x, weight, scale, None))
    with pytest.raises(ValueError, match=r"K must be at most 131071 .*got 131072"):
        F.int8_semi_sparse_linear(torch.ones(1, k + 1), *packed, scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa, activation):
    """Bit for bit those of int8_linear."""
    weight, scale, bias = two_four_int8(40, 70), torch.rand(40) * 0.01, torch.randn(40)
    packed = two_four.pack_int8(weight)
    for dtype in DTYPES:
        x = torch.randn(9, 70).to(dtype)
        y = F.int8_semi_sparse_linear(x, *packed, scale, bias, activation=activation)
        assert same(y, F.int8_linear(x, weight, scale, bias, activation=activation))


def test_strides_dimensions_and_bias_dtypes(isa):
    weight, scale, bias = two_four_int8(19, 37), torch.rand(19), torch.randn(19)
    packed, x = two_four.pack_int8(weight), torch.randn(9, 37)
    expected = F.int8_semi_sparse_linear(x, *packed, scale, bias)
    for name, view in strange_views(x).items():
        assert torch.equal(F.int8_semi_sparse_linear(view, *packed, scale, bias), expected), name
    stepped = [torch.stack([t, t], 1)[:, 0] for t in (*packed, scale)]
    assert torch.equal(F.int8_semi_sparse_linear(x, *stepped, torch.stack([bias, bias], 1)[:, 1]), expected)
    for shape in ((37,), (3, 3, 37), (0, 2, 37)):
        part = x.flatten()[: math.prod(shape)].view(shape)
        y = F.int8_semi_sparse_linear(part, *packed, scale, bias)
        assert y.shape == (*shape[:-1], 19)
        assert torch.equal(y.reshape(-1, 19), expected[: y.numel() // 19])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        b = bias.to(dtype)
        y = F.int8_semi_sparse_linear(x, *packed, scale, b)
        assert torch.equal(y, F.int8_semi_sparse_linear(x, *packed, scale, b.float()))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    make = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = {
        "x": make(2, 20), "values": make(2, 1, 32, 16, dtype=torch.int8),
        "index": make(2, 1, 32, 4, dtype=torch.uint8), "weight_scale": make(40), "bias": None,
    }  # fmt: skip

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            F.int8_semi_sparse_linear(**{**good, **changed})

    refused(TypeError, r"x must be float32.*float64", x=make(2, 20, dtype=torch.float64))
    refused(TypeError, r"values must be int8, got float32", values=make(2, 1, 32, 16))
    refused(ValueError, r"values must have shape \[2, 1, 32, 16\]", values=make(2, 1, 8, 2, 32, dtype=torch.int8))
    refused(TypeError, r"index must be uint8, got int8", index=make(2, 1, 32, 4, dtype=torch.int8))
    refused(ValueError, r"index must have shape \[2, 1, 32, 4\]", index=make(2, 2, 32, 4, dtype=torch.uint8))
    refused(ValueError, r"x must have at least 1 dimension", x=make())
    refused(TypeError, r"weight_scale must be float32", weight_scale=make(40, dtype=torch.float16))
    refused(ValueError, r"weight_scale must be \[N\]", weight_scale=make(40, 1))
    refused(ValueError, r"bias must have shape \[40\], got \[3\]", bias=make(3))
    refused(ValueError, r"activation must be one of .*'relu'.*got 'mish'", activation="mish")
    refused(ValueError, r"21", in_features=21)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_gradients_are_those_of_int8_linear(activation):
    weight, scale = two_four_int8(30, 50), torch.rand(30) * 0.01
    x, bias, grad = torch.randn(4, 50), torch.randn(30), torch.randn(4, 30)

    def gradients(op, *weights):
        inputs = x.clone().requires_grad_(), bias.clone().requires_grad_()
        return torch.autograd.grad(op(inputs[0], *weights, scale, inputs[1], activation=activation), inputs, grad)

    ours = gradients(F.int8_semi_sparse_linear, *two_four.pack_int8(weight))
    assert all(map(torch.equal, ours, gradients(F.int8_linear, weight)))


class TestLayer:
    def test_equals_int8_linear_on_the_same_weights(self):
        linear = torch.nn.Linear(52, 70)
        mask = bm.convert.two_four_mask(linear.weight)
        layer = bm.nn.Int8SemiSparseLinear.from_dense(linear, mask)
        with torch.no_grad():
            linear.weight[~mask] = 0.0
        dense, x = bm.nn.Int8Linear.from_float(linear), torch.randn(3, 4, 52)
        assert torch.equal(layer.weight_q, dense.weight_q)
        assert torch.equal(layer(x), dense(x))
        assert torch.equal(bm.nn.Int8SemiSparseLinear.from_dense(linear)(x), dense(x))

    def test_size(self):
        state = bm.nn.Int8SemiSparseLinear(256, 128, bias=False).state_dict()
        assert sum(t.nbytes for t in state.values()) == 256 * 128 * 5 // 8 + 4 * 128

    def test_what_it_refuses(self):
        linear = torch.nn.Linear(8, 4)
        with pytest.raises(ValueError, match=r"not 2:4: row 0, group 0 \(columns 0 to 3\) keeps 4 of 4"):
            bm.nn.Int8SemiSparseLinear.from_dense(linear)
        with pytest.raises(TypeError, match=r"linear must be an nn\.Linear"):
            bm.nn.Int8SemiSparseLinear.from_dense(torch.nn.ReLU())
        with pytest.raises(TypeError, match="weight_q must be int8"):
            two_four.pack_int8(torch.zeros(4, 4))
        layer = bm.nn.Int8SemiSparseLinear(40, 33)
        state = layer.state_dict()
        for name, bad, match in (
            ("index", torch.zeros_like(state["index"]), "index must increase within a group of four"),
            ("values", state["values"].float(), r"values must be torch.int8 \[2, 2, 32, 16\], got torch.float32"),
        ):
            with pytest.raises(RuntimeError, match=match):
                layer.load_state_dict({**state, name: bad})
