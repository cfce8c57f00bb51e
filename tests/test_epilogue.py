"""Activations computed by the linear ops themselves: the ops, their gradients, the layers."""

import copy
import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext._checks import ACTIVATIONS
from bigmodel_ext.formats import block, csr, int8
from layers import FRESH, IN, LINEARS, OUT
from shapes import MNK, RANDOM
from tolerances import assert_as_accurate

raw = torch.ops.bigmodel_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ACTIVATIONS[1:]
EXACT = ("relu", "leaky_relu")  # no rounding but the contract's
ACTIVATED = ("int8", "binary_coded", "sparse", "int8_sparse", "int8_semi_sparse")


def weights(n, k, density=0.3):
    """int8 weights with whole 1x4 blocks of zeros, their scales and a bias."""
    keep = (torch.rand(n, -(-k // 4)) < density).repeat_interleave(4, 1)[:, :k]
    return torch.randint(-128, 128, (n, k), dtype=torch.int8) * keep, torch.rand(n) * 0.01, torch.randn(n)


def calls(x, n, k, density=0.3):
    """op -> a call of it with an activation's name, all with the same int8 weights."""
    q, scale, bias = weights(n, k, density)
    *blocks, row_sum = block.pack(q)
    *sparse, order = csr.sort_rows(*csr.pack(q * scale[:, None]), n)
    return {
        "int8_linear": lambda a, x=x: F.int8_linear(x, int8.pack(q), scale, bias, activation=a),
        "int8_linear canonical": lambda a, x=x: F.int8_linear(x, q, scale, bias, activation=a),
        "int8_sparse_linear": lambda a, x=x: F.int8_sparse_linear(
            x, *blocks, scale, row_sum, bias, panel=block.PANEL, activation=a
        ),
        "sparse_linear": lambda a, x=x: F.sparse_linear(
            x, *sparse, bias, out_features=n, panel=csr.PANEL, order=order, activation=a
        ),
    }


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def apply(z, activation):
    """The activation as fused dropout computes it."""
    return raw.fused_dropout(z, None, None, None, 0.0, activation)


@pytest.mark.parametrize(("m", "n", "k"), [*MNK, *RANDOM[::10]])
def test_is_fused_dropouts_activation_of_the_same_result(isa, m, n, k):
    """Bit for bit on each instruction set, rounded to x's dtype afterwards only."""
    dtype, activation = DTYPES[(m + n + k) % 3], NAMES[(m + 3 * n + k) % len(NAMES)]
    x = torch.randn(m, k).to(dtype)
    for name, call in calls(x, n, k).items():
        unrounded = call(None, x.float())
        ours = call(activation)
        assert ours.dtype == dtype
        assert torch.equal(ours, apply(unrounded, activation).to(dtype)), name


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize(("m", "n", "k", "dtype"), [(1, 70, 16, 0), (2, 65, 33, 1), (16, 20, 40, 2), (9, 70, 100, 0)])
def test_equals_the_reference(isa, activation, m, n, k, dtype):
    q, scale, bias = weights(n, k)
    *blocks, row_sum = block.pack(q)
    *sparse, order = csr.sort_rows(*csr.pack(q * scale[:, None]), n)
    x = torch.randn(m, k).to(DTYPES[dtype])
    for op, args in (
        ("int8_linear", (x, q, scale, bias.to(x.dtype), activation)),
        ("int8_linear", (x, int8.pack(q), scale, None, activation)),
        ("int8_sparse_linear", (x, *blocks, scale, row_sum, bias, block.PANEL, None, activation)),
        ("sparse_linear", (x, *sparse, bias, n, csr.PANEL, order, activation)),
    ):
        ours, reference = getattr(raw, op)(*args), getattr(_reference, op)(*args)
        if op == "sparse_linear":  # sums are in another order
            exact = _reference.sparse_linear(*(t.double() if is_float(t) else t for t in args))
            assert_as_accurate(ours, reference, exact, max(1.0, exact.abs().max().item()))
        elif activation in EXACT:
            assert torch.equal(ours, reference)
        else:
            torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("activation", NAMES)
def test_is_as_accurate_as_torchs(isa, activation):
    """On x whose rows are integers times a power of two, int8 is exact up to the bias: only the activation errs."""
    x = torch.randint(-127, 128, (40, 64)).float() / 64
    x[:, 0] = 127 / 64
    q, bias = torch.randint(-8, 9, (96, 64), dtype=torch.int8), torch.randn(96)
    scale = torch.full((96,), 2.0**-4)
    z = (x.double() @ q.double().T) * scale[0] + bias.double()
    torchs = _reference.activate(z.float(), activation)
    assert_as_accurate(
        F.int8_linear(x, q, scale, bias, activation=activation), torchs, _reference.activate(z, activation)
    )


@pytest.mark.parametrize("activation", NAMES)
def test_special_values(isa, activation):
    x = torch.randn(9, 40)
    x[1], x[2, 3], x[3, 4] = 0.0, math.nan, math.inf
    q, scale, bias = weights(70, 40)
    scale[:4], bias[5:8] = torch.tensor([0.0, math.inf, math.nan, 1e30]), torch.tensor([math.inf, -math.inf, math.nan])
    for op, args in (("int8_linear", (x, int8.pack(q), scale, bias)),):
        ours, z = getattr(raw, op)(*args, activation), getattr(raw, op)(*args)
        torch.testing.assert_close(ours, apply(z, activation), rtol=0, atol=0, equal_nan=True)
        assert ours[2].isnan().all()
        assert ours[3].isnan().all()


@pytest.mark.parametrize(("m", "n", "k"), [(300, 200, 129), (1, 2000, 300), (40, 140, 2100)])
def test_threads_agree(isa, threads, m, n, k):
    for name, call in calls(torch.randn(m, k), n, k).items():
        assert torch.equal(call("gelu"), apply(call(None), "gelu")), name


def test_leading_dimensions_and_none(isa):
    x = torch.randn(24, 50)
    for name, call in calls(x, 70, 50).items():
        assert torch.equal(call("none"), call(None)), name
        assert torch.equal(call("gelu", x.view(2, 3, 4, 50)).view(24, 70), call("gelu")), name
        assert call("gelu", x[:0].view(0, 6, 50)).shape == (0, 6, 70), name
        assert torch.equal(call("silu", x[3]), call("silu", x[3:4])[0]), name


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_activation(device):
    q, scale, _ = (t.to(device) for t in weights(6, 8))
    x = torch.randn(2, 8, device=device)
    *blocks, row_sum = (t.to(device) for t in block.pack(torch.ones(6, 8, dtype=torch.int8)))
    sparse = [t.to(device) for t in csr.pack(torch.ones(6, 8))]
    for name in ("swish", "GELU", ""):
        with pytest.raises(ValueError, match=rf"activation must be one of .*none.*, got '{name}'"):
            raw.int8_linear(x, q, scale, None, name)
        with pytest.raises(ValueError, match=rf"activation must be one of .*none.*, got '{name}'"):
            raw.int8_sparse_linear(x, *blocks, scale, row_sum, None, block.PANEL, None, name)
        with pytest.raises(ValueError, match=rf"activation must be one of .*none.*, got '{name}'"):
            raw.sparse_linear(x, *sparse, None, 6, csr.PANEL, None, name)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(activation, dtype):
    """As accurate as torch's activation behind the same op without one, for x, the bias and stored values."""
    q, scale, bias = weights(30, 24)
    *blocks, row_sum = block.pack(q)
    values, crow, col = csr.pack(q * scale[:, None])
    stored = _reference.panel_rows_columns(crow, col, 30, csr.PANEL)
    x, g = torch.randn(9, 24).to(dtype), torch.randn(9, 30).to(dtype)
    for op, args, tail in (
        (raw.int8_linear, (int8.pack(q), scale, bias), ()),
        (raw.int8_sparse_linear, (*blocks, scale, row_sum, bias), (block.PANEL, None)),
        (raw.sparse_linear, (values, crow, col, bias), (30, csr.PANEL, None)),
    ):
        grads = []
        for fused in (True, False):
            leaves = [x.clone(), *(t.clone() for t in args)]
            trained = [leaves[0], leaves[-1]] + ([leaves[1]] if op is raw.sparse_linear else [])
            for leaf in trained:
                leaf.requires_grad_()
            y = op(*leaves, *tail, activation) if fused else _reference.activate(op(*leaves, *tail), activation)
            grads.append(torch.autograd.grad(y, trained, g))
        dz = g.double() * _reference.activation_slope(op(x, *args, *tail).double(), activation)
        exact = [dz @ (q.double() * scale.double()[:, None]), dz.sum(0), (dz.T @ x.double())[stored]]
        for ours, torchs, wanted in zip(*grads, exact, strict=False):
            assert_as_accurate(ours, torchs.to(ours.dtype), wanted, max(1.0, wanted.abs().max().item()))


def test_a_second_derivative_is_refused():
    q, scale, bias = weights(6, 8)
    x = torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(F.int8_linear(x, q, scale, bias, activation="gelu").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can't be differentiated twice"):
        dx.sum().backward()


class TestLayers:
    @pytest.mark.parametrize("kind", ACTIVATED)
    def test_compute_it(self, kind):
        layer, x = LINEARS[kind](), torch.randn(5, IN)
        linear = layer(x)
        assert "activation" not in repr(layer)
        layer.activation = "gelu"
        assert "activation='gelu'" in repr(layer)
        assert torch.equal(layer(x), apply(linear, "gelu"))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        other = FRESH[kind](activation="gelu")
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))

    @pytest.mark.parametrize("kind", ACTIVATED)
    def test_refuse_unknown_ones(self, kind):
        with pytest.raises(ValueError, match=r"activation must be one of none, relu.*got 'mish'"):
            FRESH[kind](activation="mish")
        layer = LINEARS[kind]()
        with pytest.raises(ValueError, match="got 'mish'"):
            layer.activation = "mish"
        assert layer.activation == "none"

    @pytest.mark.parametrize("kind", ["block_sparse", "semi_sparse"])
    def test_without_an_epilogue(self, kind):
        assert LINEARS[kind]().activation == "none"

    @pytest.mark.parametrize("kind", ACTIVATED)
    def test_to_dense_refuses_to_lose_it(self, kind):
        layer = LINEARS[kind]()
        layer.activation = "relu"
        with pytest.raises(ValueError, match="can't compute this layer's activation, relu"):
            layer.to_dense()
        layer.activation = "none"
        assert layer.to_dense().out_features == OUT

    @pytest.mark.parametrize("kind", ACTIVATED)
    def test_compile_export_and_autocast(self, kind):
        layer, x = LINEARS[kind](), torch.randn(5, IN)
        layer.activation = "gelu"
        expected = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
        assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), expected)

    def test_explain_compares_with_the_dense_layer_and_the_activation(self):
        layer = LINEARS["int8"]()
        layer.activation = "gelu"
        (row,) = bm.explain(torch.nn.Sequential(layer), batch=1).layers
        assert row.reason.endswith("; computes gelu too")
        from bigmodel_ext._probe import probe_of

        x = torch.full((1, IN), -1.0)  # weights are all 0.5: without GELU the result would be far below 0
        assert probe_of(layer).dense(layer)(x).abs().max() < 1e-3
