import copy
import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext.formats import csr
from layers import IN, LAYERS, LINEARS, OUT, dense, tensors
from torch import nn

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LINEARS)
def test_it_is_a_linear(kind, bias):
    layer = LINEARS[kind](bias=bias)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features, layer.bias is None) == (IN, OUT, not bias)
    assert f"in_features={IN}, out_features={OUT}, bias={bias}" in repr(layer)
    assert layer.weight.shape == (OUT, IN)
    assert layer(torch.randn(2, 3, IN)).shape == (2, 3, OUT)
    assert layer(torch.randn(0, IN)).shape == (0, OUT)
    assert layer(torch.randn(IN)).shape == (OUT,)
    with pytest.raises((AttributeError, KeyError, TypeError)):
        layer.weight = torch.zeros(OUT, IN)


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_weight_follows_the_formula(dtype):
    linear = dense(dtype=dtype)
    with torch.no_grad():
        linear.weight[3] = 0.0
    layer = bm.nn.Int8Linear.from_float(linear)
    w = linear.weight.detach().float()
    absmax = w.abs().amax(1, keepdim=True)
    expected = torch.where(absmax > 0, (w * torch.full_like(absmax, 127.0).div(absmax)).round(), 0.0)
    assert torch.equal(layer.weight_q.float(), expected)
    assert torch.equal(layer.weight_scale, (absmax / 127.0).squeeze(1))
    assert layer.weight.dtype == dtype
    step = layer.weight_scale[:, None] * 0.5001 + torch.finfo(dtype).eps * w.abs()
    assert ((layer.weight.float() - w).abs() <= step).all()


def test_int8_row_with_nan_gives_nan_and_no_other():
    linear = dense()
    with torch.no_grad():
        linear.weight[5, 2], linear.weight[6, 0] = math.nan, math.inf
    y = bm.nn.Int8Linear.from_float(linear)(torch.randn(4, IN))
    bad = y.isnan().any(0)
    assert bad.nonzero().flatten().tolist() == [5, 6]


def test_int8_is_one_byte_a_weight():
    layer = bm.nn.Int8Linear.from_float(nn.Linear(1024, 512, bias=False))
    resident = sum(t.numel() * t.element_size() for t in tensors(layer).values())
    assert set(tensors(layer)) == {"packed", "weight_scale"}
    assert resident <= 1.01 * 1024 * 512 + 4 * 512


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", LINEARS)
def test_an_input_of_another_width_is_refused(kind, device):
    layer = LINEARS[kind]().to(device)
    for shape in ((5, IN + 1), (5, IN - 1), (IN, 1), (0,), ()):
        with pytest.raises(
            ValueError,
            match=rf"x must have {IN} features in its last dimension, got shape \[{shape[0] if shape else ''}",
        ):
            layer(torch.zeros(shape, device=device))


def test_int8_output():
    layer, x = LINEARS["int8"](), torch.randn(9, IN)
    assert torch.equal(layer(x), bm.functional.int8_linear(x, layer.weight_q, layer.weight_scale, layer.bias))


def test_int8_sparse_equals_int8_on_the_same_weights():
    linear, x = dense(), torch.randn(9, IN)
    assert torch.equal(bm.nn.Int8SparseLinear.from_float(linear)(x), bm.nn.Int8Linear.from_float(linear)(x))


def test_sparse_keeps_what_the_mask_keeps():
    linear, mask = dense(sparsity=0.0), torch.rand(OUT, IN) < 0.3
    layer = bm.nn.SparseLinear.from_dense(linear, mask)
    assert layer.nnz == int(mask.sum())
    assert torch.equal(layer.weight, torch.where(mask, linear.weight, 0.0))
    x = torch.randn(8, IN)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    blocks = bm.nn.Int8SparseLinear.from_dense(linear, mask)
    assert torch.equal(blocks.weight_q != 0, blocks.weight_q.ne(0) & mask)
    assert blocks.values.shape[0] < -(-IN // 4) * OUT


@pytest.mark.parametrize("kind", LINEARS)
def test_to_dense(kind):
    layer = LINEARS[kind]().eval()
    linear = layer.to_dense()
    assert type(linear) is nn.Linear
    assert not linear.training
    assert torch.equal(linear.weight, layer.weight)
    assert torch.equal(linear.bias, layer.bias)
    assert linear.bias is not layer.bias
    if kind == "binary_coded":
        return  # the fit of a decoded weight need not find its code again
    again = type(layer).from_float(linear) if hasattr(layer, "from_float") else type(layer).from_dense(linear)
    assert torch.equal(again.weight, layer.weight)


def test_sparse_trains_stored_values_only():
    layer, x = LINEARS["sparse"](), torch.randn(16, IN)
    before, pattern = layer.values.detach().clone(), layer.weight.detach() != 0
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(x).square().sum().backward()
    w = layer.weight.detach().requires_grad_()
    nn.functional.linear(x, w, layer.bias.detach()).square().sum().backward()
    gradient = csr.unpack(layer.values.grad, layer.crow, layer.col, OUT, IN, layer.panel, layer.order)
    torch.testing.assert_close(gradient, w.grad * pattern)
    optimizer.step()
    assert not torch.equal(layer.values, before)
    assert torch.equal(layer.weight != 0, pattern)


@pytest.mark.parametrize("kind", ["int8", "int8_sparse"])
def test_int8_gives_gradients_to_input_and_bias(kind):
    layer, x = LINEARS[kind](), torch.randn(5, IN, requires_grad=True)
    grad = torch.randn(5, OUT)
    layer(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ layer.weight.detach())
    torch.testing.assert_close(layer.bias.grad, grad.sum(0))


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LINEARS)
def test_casts_leave_integers_and_scales(kind, cast):
    layer = LINEARS[kind]()
    before = {n: t.clone() for n, t in tensors(layer).items()}
    for change in (lambda m: m.to(cast), lambda m: m.half() if cast == torch.float16 else m.bfloat16()):
        moved = change(copy.deepcopy(layer))
        for name, t in tensors(moved).items():
            if name in ("bias", "values") and before[name].is_floating_point():
                assert t.dtype == cast, name
            else:
                assert torch.equal(t, before[name]), name
        y = moved(torch.randn(4, IN, dtype=cast))
        assert y.dtype == cast
        assert y.isfinite().all()
        assert moved.weight.dtype == cast


@pytest.mark.parametrize("kind", LAYERS)
def test_deepcopy(kind):
    layer, x = LAYERS[kind](), torch.randn(4, IN)
    copied = copy.deepcopy(layer)
    for name, t in tensors(layer).items():
        assert t.numel() == 0 or tensors(copied)[name].data_ptr() != t.data_ptr(), name
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    assert torch.equal(copied(x), expected)


@pytest.mark.parametrize("kind", LINEARS)
def test_reset_parameters_zeroes(kind):
    layer = LINEARS[kind]()
    layer.reset_parameters()
    assert torch.equal(layer(torch.randn(3, IN)), torch.zeros(3, OUT))


def test_bad_arguments():
    conv = nn.Conv2d(1, 1, 1)
    for make in (bm.nn.Int8Linear.from_float, bm.nn.SparseLinear.from_dense, bm.nn.Int8SparseLinear.from_dense):
        with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got Conv2d"):
            make(conv)
    with pytest.raises(TypeError, match="float64"):
        bm.nn.Int8Linear.from_float(nn.Linear(3, 4).double())
    wide = nn.Linear(131_072, 1, bias=False, device="meta")
    for make in (bm.nn.Int8Linear.from_float, bm.nn.Int8SparseLinear.from_float):
        with pytest.raises(ValueError, match=r"in_features must be at most 131071.*131072"):
            make(wide)
    with pytest.raises(ValueError, match="layout must be one of auto, panel_csr, got 'bsr'"):
        bm.nn.SparseLinear.from_dense(dense(), layout="bsr")
    for mask in (torch.ones(OUT, IN), torch.ones(IN, OUT, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask must be bool"):
            bm.nn.SparseLinear.from_dense(dense(), mask)
        with pytest.raises(ValueError, match="mask must be bool"):
            bm.nn.Int8SparseLinear.from_dense(dense(), mask)


@pytest.mark.parametrize("kind", LINEARS)
def test_zero_sizes(kind):
    make = "from_float" if hasattr(LINEARS[kind](), "from_float") else "from_dense"
    for k, n in ((0, 5), (5, 0), (0, 0)):
        linear = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(linear)
        linear.in_features, linear.out_features = k, n
        linear.weight, linear.bias = nn.Parameter(torch.zeros(n, k)), nn.Parameter(torch.ones(n))
        layer = getattr(type(LINEARS[kind]()), make)(linear)
        assert torch.equal(layer(torch.zeros(3, k)), torch.ones(3, n))
        other = type(layer)(k, n)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(torch.zeros(3, k)), torch.ones(3, n))


class TestFusedDropout:
    def test_it_is_a_dropout(self):
        layer = bm.nn.FusedDropout(0.25, "gelu", 5)
        assert isinstance(layer, nn.Dropout)
        assert (layer.p, layer.inplace, layer.activation, layer.bias.shape) == (0.25, False, "gelu", (5,))
        assert repr(layer) == "FusedDropout(p=0.25, activation='gelu', num_features=5)"
        assert list(bm.nn.FusedDropout(0.1).state_dict()) == []

    @pytest.mark.parametrize("residual", [True, False])
    @pytest.mark.parametrize("features", [None, 33])
    @pytest.mark.parametrize("activation", bm.functional.ACTIVATIONS)
    def test_formula(self, activation, features, residual):
        layer = bm.nn.FusedDropout(0.25, activation, features)
        if features:
            nn.init.normal_(layer.bias)
        x, r = torch.randn(6, 33), torch.randn(6, 33) if residual else None
        z = _reference.activate(x if features is None else x + layer.bias, activation)
        torch.testing.assert_close(layer.eval()(x, r), z if r is None else z + r)
        y = layer.train()(x, r) - (0 if r is None else r)
        kept = torch.isclose(y, z * _reference.dropout_scale(0.25), rtol=1e-4, atol=1e-6)
        dropped = y.abs() < 1e-7
        assert (kept | dropped).all()
        assert dropped.any()

    def test_eval_without_work_returns_its_input(self):
        x = torch.randn(3)
        assert bm.nn.FusedDropout(0.5).eval()(x) is x

    def test_residual_that_needs_broadcasting_or_promotion(self):
        x = torch.randn(4, 6)
        for residual in (torch.randn(6), torch.randn(3, 4, 6), torch.randn(4, 6, dtype=torch.float64)):
            y = bm.nn.FusedDropout(0.0, "relu").train()(x, residual)
            assert y.dtype == torch.promote_types(residual.dtype, x.dtype)
            assert torch.equal(y, x.relu() + residual)

    def test_gradients_and_seed(self):
        layer, x = bm.nn.FusedDropout(0.5, "none", 50), torch.randn(8, 50, requires_grad=True)
        torch.manual_seed(1)
        y = layer(x)
        y.sum().backward()
        torch.testing.assert_close(x.grad, (y.detach() != 0) * 2.0)
        torch.testing.assert_close(layer.bias.grad, x.grad.sum(0))
        torch.manual_seed(1)
        assert torch.equal(layer(x), y)
        assert not torch.equal(layer(x), y)

    def test_bad_arguments(self):
        for p in (-0.1, 1.5):
            with pytest.raises(ValueError, match=str(p)):
                bm.nn.FusedDropout(p)
        with pytest.raises(ValueError, match=r"activation must be one of none, relu.*'mish'"):
            bm.nn.FusedDropout(0.1, "mish")
        with pytest.raises(ValueError, match="num_features must not be negative, got -1"):
            bm.nn.FusedDropout(0.1, "none", -1)
