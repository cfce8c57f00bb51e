import copy
import math

import bigmodel_ext as bm
import pytest
import torch
import torch.nn.functional as TF
from bigmodel_ext import _dispatch, _native, _reference
from bigmodel_ext import functional as F
from shapes import EXECUTED, covering
from tolerances import assert_as_accurate
from torch import nn

raw = torch.ops.bigmodel_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("layer", "rms")
SEED = 0x123456789
TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}  # a unit in the last place, where rounding differs
FEATURES = (1, 2, 15, 16, 63, 64, 65, 100, 129, 768)
LONG_FEATURES = (256, 257, 511, 512, 1023, 1024, 1032, 1100, 2056, 5000)


def torchs_norm(h, norm, weight, norm_bias, eps):
    if norm == "layer":
        return TF.layer_norm(h, h.shape[-1:], weight, norm_bias, eps)
    y = TF.rms_norm(h, h.shape[-1:], weight, eps)
    return y if norm_bias is None else y + norm_bias


def tensors(rows, features, dtype):
    x, residual, gy, gh = (torch.randn(rows, features).to(dtype) for _ in range(4))
    bias, weight, norm_bias = (torch.randn(features) for _ in range(3))
    return x, residual + 0.5, bias, weight, norm_bias, gy, gh


@pytest.mark.parametrize(("dtype", "norm", "features"), covering(DTYPES, NORMS, FEATURES))
def test_h_is_fused_dropout_s_and_y_its_norm(float_isa, dtype, norm, features):
    for rows in (1, 7):
        x, residual, bias, weight, norm_bias, *_ = tensors(rows, features, dtype)
        for b, r, w, nb in (
            (bias, residual, weight, norm_bias),
            (None, None, None, None),
            (None, residual, weight, None),
        ):
            y, h = F.fused_dropout_norm(x, 0.3, True, b, "relu", r, w, nb, norm, 1e-3, seed=SEED)
            assert torch.equal(h, F.fused_dropout(x, 0.3, bias=b, activation="relu", residual=r, seed=SEED))
            assert torch.equal(h, _reference.fused_dropout(x, b, r, torch.tensor(SEED), 0.3, "relu"))
            wide = [None if t is None else t.double() for t in (w, nb)]
            small = [None if t is None else t.to(dtype) for t in (w, nb)]
            exact = torchs_norm(h.double(), norm, *wide, 1e-3)
            assert_as_accurate(y, torchs_norm(h, norm, *small, 1e-3), exact)


@pytest.mark.parametrize(("dtype", "norm", "features"), covering(DTYPES, NORMS, FEATURES))
def test_backward_is_as_accurate_as_torch_s(float_isa, dtype, norm, features):
    x, residual, bias, weight, norm_bias, gy, gh = tensors(9, features, dtype)
    seed, p = torch.tensor(SEED), 0.3
    keep = _reference.dropout_keep(x.numel(), SEED, p).reshape(x.shape)

    def torchs(of):
        leaves = [t.to(of).requires_grad_() for t in (x, bias, residual, weight, norm_bias)]
        z = TF.silu(leaves[0] + leaves[1]) * _reference.dropout_scale(p)
        h = torch.where(keep, z, 0) + leaves[2]
        y = torchs_norm(h, norm, leaves[3], leaves[4], 1e-3)
        return torch.autograd.grad((y, h), leaves, (gy.to(of), gh.to(of)))

    leaves = [t.detach().clone().requires_grad_() for t in (x, bias, residual, weight, norm_bias)]
    y, h = F.fused_dropout_norm(leaves[0], p, True, leaves[1], "silu", *leaves[2:], norm, 1e-3, seed)
    ours = torch.autograd.grad((y, h), leaves, (gy, gh))
    for mine, lower, exact in zip(ours, torchs(dtype), torchs(torch.float64), strict=True):
        assert_as_accurate(mine.to(dtype), lower, exact)


@pytest.mark.parametrize(("dtype", "features"), covering(DTYPES, LONG_FEATURES))
def test_rows_of_several_warps(dtype, features):
    """About the tiles of CUDA's kernels: whole and shorter ones, a warp to a row and a block, aligned and not."""
    x, residual, bias, weight, norm_bias, gy, gh = tensors(5, features, dtype)
    seed, args = torch.tensor(SEED), (0.3, "relu", "layer")
    out = raw.fused_dropout_norm(x, bias, residual, seed, weight, norm_bias, *args, 1e-5)
    truth = _reference.fused_dropout_norm(x, bias, residual, seed, weight, norm_bias, *args, 1e-5)
    assert torch.equal(out[1], truth[1])
    wide = [t.double() for t in (truth[1], weight, norm_bias)]
    assert_as_accurate(out[0], truth[0], TF.layer_norm(wide[0], (features,), *wide[1:], 1e-5))
    back = raw.fused_dropout_norm_backward(gy, gh, *out[1:], x, bias, seed, weight, *args)
    for ours, theirs in zip(back, _reference.fused_dropout_norm_backward(
            gy, gh, *truth[1:], x, bias, seed, weight, *args), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.cpu_only(reason="float64 has no kernel, and a forced backend does not fall back")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("used", ["y", "h", "both"])
def test_either_result_may_be_unused(norm, used):
    x, _, bias, weight, norm_bias, gy, gh = (t.double() for t in tensors(5, 40, torch.float32))
    leaves = [t.requires_grad_() for t in (x, bias, weight, norm_bias)]

    def loss(y, h):
        return (0 if used == "h" else (y * gy).sum()) + (0 if used == "y" else (h * gh).sum())

    h = _reference.fused_dropout(x, bias, None, torch.tensor(SEED), 0.3, "tanh")
    plain = torch.autograd.grad(loss(torchs_norm(h, norm, weight, norm_bias, 1e-5), h), leaves, allow_unused=True)
    for dtype in (torch.float64, torch.float32)[_dispatch.forced_backend() is not None :]:
        mine = [t.detach().to(dtype).requires_grad_() for t in leaves]
        y, h = F.fused_dropout_norm(mine[0], 0.3, True, mine[1], "tanh", None, *mine[2:], norm, seed=SEED)
        ours = torch.autograd.grad(loss(y, h), mine)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(
                a.double(), torch.zeros_like(a).double() if b is None else b, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything_dropped(float_isa, norm, p):
    x, residual, bias, weight, norm_bias, gy, gh = tensors(40, 100, torch.float32)
    state = torch.get_rng_state()
    y, h = F.fused_dropout_norm(x, p, p > 0, bias, "relu", residual, weight, norm_bias, norm, seed=3 if p else None)
    assert torch.equal(torch.get_rng_state(), state), "the generator must not advance"
    assert torch.equal(h, residual if p else torch.relu(x + bias) + residual)
    torch.testing.assert_close(y, torchs_norm(h, norm, weight, norm_bias, 1e-5))
    eval_mode = F.fused_dropout_norm(x, 0.7, False, bias, "relu", residual, weight, norm_bias, norm)
    assert torch.equal(eval_mode[1], torch.relu(x + bias) + residual)
    leaf = x.clone().requires_grad_()
    y, h = F.fused_dropout_norm(leaf, p, p > 0, bias, "relu", residual, weight, norm_bias, norm, seed=3 if p else None)
    (dx,) = torch.autograd.grad((y, h), leaf, (gy, gh))
    assert dx.count_nonzero() == (0 if p else (x + bias > 0).sum())


@pytest.mark.cpu_only(reason="threads that share one call's work")
def test_the_same_bits_for_any_number_of_threads(float_isa):
    x, residual, bias, weight, norm_bias, gy, gh = tensors(1203, 300, torch.float32)
    seed, before, results = torch.tensor(SEED), torch.get_num_threads(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        out = raw.fused_dropout_norm(x, bias, residual, seed, weight, norm_bias, 0.2, "gelu", "layer", 1e-5)
        back = raw.fused_dropout_norm_backward(gy, gh, *out[1:], x, bias, seed, weight, 0.2, "gelu", "layer")
        results.append((*out, *back, *raw.fused_dropout_backward_bias(gy, x, bias, seed, 0.2, "gelu")))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize(("dtype", "shape"), covering(DTYPES, ((0, 5), (1, 1), (3, 100), (700, 257), (5000, 3))))
def test_the_bias_gradient_is_the_sum_of_dx(float_isa, dtype, shape):
    x, _, bias, *_, grad, _ = tensors(*shape, dtype)
    args = (grad, x, bias, torch.tensor(SEED), 0.25, "gelu")
    dx, dbias = raw.fused_dropout_backward_bias(*args)
    assert torch.equal(dx, raw.fused_dropout_backward(*args))
    assert dbias.dtype == torch.float32
    assert_as_accurate(dbias, dx.float().sum(0), dx.double().sum(0))


@pytest.mark.cpu_only(reason="stores past the caches")
def test_large_outputs_streamed_past_the_caches(float_isa):
    x = torch.randn(8193 if float_isa in _native.ISAS else 33, 1024)
    y, h = F.fused_dropout_norm(x, 0.1, norm="rms", seed=SEED)
    assert torch.equal(h, F.fused_dropout(x, 0.1, seed=SEED))
    torch.testing.assert_close(y, TF.rms_norm(h, (1024,), eps=1e-5))


def test_dimensions_and_strides(float_isa):
    base = torch.randn(6, 8, 70)
    for x in (base, base.transpose(0, 1), base[:, ::2, 1::3], base[0, 0], base[:0]):
        n = x.shape[-1]
        weight, residual = torch.randn(2 * n)[::2], torch.randn(x.shape).flip(0)
        y, h = F.fused_dropout_norm(x, 0.4, residual=residual, weight=weight, seed=SEED)
        expected = F.fused_dropout(x.contiguous(), 0.4, residual=residual, seed=SEED)
        assert torch.equal(h, expected)
        torch.testing.assert_close(y, TF.layer_norm(expected, (n,), weight.contiguous()))
        leaf = x.clone().requires_grad_()
        y, h = F.fused_dropout_norm(leaf, 0.4, residual=residual, weight=weight, seed=SEED)
        (dx,) = torch.autograd.grad(y, leaf, torch.randn(y.T.shape if y.dim() == 2 else y.shape).reshape(y.shape))
        assert dx.shape == x.shape


def test_special_values(float_isa):
    x = torch.randn(5, 70)
    x[0, 3], x[1, 4], x[2] = math.nan, math.inf, 2.5
    y, _ = F.fused_dropout_norm(x, 0.0)
    assert y[0].isnan().all()
    assert y[1].isnan().any()
    assert torch.equal(y[2], torch.zeros(70)), "a constant row has no variance"
    torch.testing.assert_close(y[3:], TF.layer_norm(x[3:], (70,)))
    large = torch.randn(3, 128) + 1e4  # a one-pass variance would cancel
    assert_as_accurate(
        F.fused_dropout_norm(large, 0.0)[0], TF.layer_norm(large, (128,)), TF.layer_norm(large.double(), (128,))
    )


def test_compiled_code_sees_the_same():
    def layer(x, weight):
        y, h = F.fused_dropout_norm(x.sin(), 0.3, activation="gelu", residual=x, weight=weight)
        return y * h

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager" if EXECUTED else "inductor")
    x, weight = torch.randn(20, 30, requires_grad=True), torch.randn(30, requires_grad=True)
    results = []
    for f in (layer, compiled):
        torch.manual_seed(9)
        out = f(x, weight)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_a_second_derivative_is_refused():
    x = torch.randn(3, 5, requires_grad=True)
    y, _ = F.fused_dropout_norm(x, 0.5, seed=1)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can't be differentiated twice"):
        torch.autograd.grad(dx.sum(), x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    x = torch.zeros(4, 6, device=device)
    other = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        F.fused_dropout_norm(x, 1.5)
    with pytest.raises(ValueError, match=r"norm must be one of.*got 'batch'"):
        F.fused_dropout_norm(x, 0.5, norm="batch")
    with pytest.raises(ValueError, match=r"eps must not be negative, got -1"):
        F.fused_dropout_norm(x, 0.5, eps=-1.0)
    with pytest.raises(ValueError, match=r"x must have at least 1 feature, got shape \[4, 0\]"):
        F.fused_dropout_norm(other(4, 0), 0.5)
    with pytest.raises(ValueError, match=r"x must have at least 1 feature, got shape \[\]"):
        F.fused_dropout_norm(other(), 0.5)
    for name in ("weight", "norm_bias"):
        with pytest.raises(ValueError, match=rf"{name} must have .*6.*got .*5"):
            F.fused_dropout_norm(x, 0.5, **{name: other(5)})
        with pytest.raises(TypeError, match=rf"{name} must be float32.*got int64"):
            F.fused_dropout_norm(x, 0.5, **{name: other(6, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"residual must have shape \[4, 6\], got \[6, 4\]"):
        F.fused_dropout_norm(x, 0.5, residual=other(6, 4))
    with pytest.raises(ValueError, match=r"mean must have shape \[4\], got \[5\]|mean.*4.*got.*5"):
        raw.fused_dropout_norm_backward(x, None, x, other(5), other(4), x, None, None, None, 0.0, "none", "layer")


class TestLayer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("eps", [1e-3, None])
    @pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
    def test_it_takes_over_a_norm(self, kind, eps, dtype):
        if kind is nn.LayerNorm and eps is None:
            pytest.skip("nn.LayerNorm always has an eps")
        norm = kind(70, eps=eps, dtype=dtype).eval()
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        layer = bm.nn.FusedDropoutNorm.from_norm(norm, 0.3, "relu")
        assert layer.weight is norm.weight
        assert layer.norm_bias is getattr(norm, "bias", None)
        assert not layer.training
        x, residual = torch.randn(4, 70).to(dtype) * 0.1, torch.randn(4, 70).to(dtype) * 0.1
        y, h = layer(x, residual)
        assert torch.equal(h, torch.relu(x) + residual)
        torch.testing.assert_close(y, norm(h))

    def test_in_training_it_is_the_function(self):
        layer, x = bm.nn.FusedDropoutNorm(40, 0.5, "gelu", "rms", bias=True), torch.randn(6, 40)
        nn.init.normal_(layer.bias)
        torch.manual_seed(4)
        y, h = layer(x, x)
        torch.manual_seed(4)
        args = (layer.bias, "gelu", x, layer.weight, layer.norm_bias, "rms")
        expected = F.fused_dropout_norm(x, 0.5, True, *args)
        assert torch.equal(y, expected[0])
        assert torch.equal(h, expected[1])
        (y.sum() + h.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())

    def test_copies_states_and_names(self):
        layer = bm.nn.FusedDropoutNorm(5, 0.25, "silu", bias=True)
        assert list(layer.state_dict()) == ["bias", "weight", "norm_bias"]
        layer.load_state_dict({name: torch.randn(5) for name in layer.state_dict()})
        x = torch.randn(3, 5)
        assert torch.equal(copy.deepcopy(layer).eval()(x)[0], layer.eval()(x)[0])
        assert repr(layer) == (
            "FusedDropoutNorm(5, p=0.25, activation='silu', norm='layer', eps=1e-05, bias, weight, norm_bias)"
        )
        assert list(bm.nn.FusedDropoutNorm(5, weight=False, norm_bias=False).parameters()) == []

    def test_bad_arguments(self):
        for message, kwargs in (
            ("num_features must be at least 1, got 0", {"num_features": 0}),
            (r"p must be in \[0, 1\], got 2", {"p": 2}),
            ("activation must be one of .*got 'mish'", {"activation": "mish"}),
            ("norm must be one of layer, rms, got 'group'", {"norm": "group"}),
            ("eps must not be negative, got -1", {"eps": -1}),
        ):
            with pytest.raises(ValueError, match=message):
                bm.nn.FusedDropoutNorm(**{"num_features": 4, **kwargs})
        with pytest.raises(TypeError, match=r"must be an nn\.LayerNorm or nn\.RMSNorm, got BatchNorm1d"):
            bm.nn.FusedDropoutNorm.from_norm(nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match=r"last dimension only, got \[3, 4\]"):
            bm.nn.FusedDropoutNorm.from_norm(nn.LayerNorm((3, 4)))
