import math

import pytest
import torch
from bigmodel_ext import _dispatch, _reference
from bigmodel_ext import functional as F
from bigmodel_ext._checks import ACTIVATIONS
from shapes import EDGES, covering
from tolerances import assert_as_accurate

raw = torch.ops.bigmodel_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT = ("none", "relu", "leaky_relu")  # no rounding but the contract's: equal to the reference bit for bit
SEED = 0x123456789


def inputs_for(dtype: torch.dtype) -> torch.Tensor:
    """Ordinary values, the far tails, and magnitudes down to subnormals."""
    small = torch.logspace(-44, 1, 300)
    x = torch.cat([torch.randn(3000) * 3, torch.linspace(-120, 120, 2001), torch.linspace(-8, 8, 1001), small, -small])
    return x.to(dtype)


def torchs_slope(x: torch.Tensor, activation: str) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(_reference.activate(x, activation).sum(), x)[0]


@pytest.mark.parametrize(("dtype", "activation"), covering(DTYPES, ACTIVATIONS))
def test_activation_and_slope_are_accurate(float_isa, dtype, activation):
    x = inputs_for(dtype)
    ours = raw.fused_dropout(x, None, None, None, 0.0, activation)
    assert_as_accurate(ours, _reference.activate(x, activation), _reference.activate(x.double(), activation))
    ours = raw.fused_dropout_backward(torch.ones_like(x), x, None, None, 0.0, activation)
    assert_as_accurate(ours, torchs_slope(x, activation), torchs_slope(x.double(), activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_small_results_keep_their_relative_accuracy(float_isa, activation):
    # An error bound set by the largest result would not see a tail that is flushed or a sign that is lost.
    x = torch.cat([-torch.logspace(-30, math.log10(80), 400), torch.logspace(-30, 1, 300)])
    ours = raw.fused_dropout(x, None, None, None, 0.0, activation).double()
    wide = x.double()
    # torch's float64 GELU cancels in the tail; erfc does not.
    if activation == "gelu":
        exact = wide * torch.special.erfc(-wide / math.sqrt(2)) / 2
    else:
        exact = _reference.activate(wide, activation)
    visible = exact.abs() > torch.finfo(torch.float32).tiny
    error = ((ours - exact) / exact)[visible].abs().max().item()
    assert error < 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("dtype", "activation"), covering(DTYPES, ACTIVATIONS))
def test_special_values(float_isa, dtype, activation):
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-45] * 9).to(dtype)
    wide = x.double()
    for ours, exact in (
        (raw.fused_dropout(x, None, None, None, 0.0, activation), _reference.activate(wide, activation)),
        (
            raw.fused_dropout_backward(torch.ones_like(x), x, None, None, 0.0, activation),
            torchs_slope(wide, activation),
        ),
    ):
        torch.testing.assert_close(ours, exact.to(dtype), rtol=1e-6, atol=1e-38, equal_nan=True)


@pytest.mark.parametrize(("dtype", "n"), covering(DTYPES, EDGES))
def test_chain_equals_the_reference(float_isa, dtype, n):
    x, residual, bias = torch.randn(7, n).to(dtype), torch.randn(7, n).to(dtype), torch.randn(n)
    seed = torch.tensor(SEED)
    for b in (None, bias, bias.to(dtype)):
        for r in (None, residual):
            for activation in ("leaky_relu", "gelu"):
                args = (x, b, r, seed, 0.3, activation)
                ours, reference = raw.fused_dropout(*args), _reference.fused_dropout(*args)
                back = (residual, x, b, seed, 0.3, activation)
                dx, dx_reference = raw.fused_dropout_backward(*back), _reference.fused_dropout_backward(*back)
                if activation in EXACT:
                    assert torch.equal(ours, reference)
                    assert torch.equal(dx, dx_reference)
                else:
                    torch.testing.assert_close(ours, reference)
                    torch.testing.assert_close(dx, dx_reference)


def test_nothing_dropped_and_everything_dropped():
    x, residual = torch.randn(3, 50), torch.randn(3, 50)
    state = torch.get_rng_state()
    for out in (F.fused_dropout(x, 0.0), F.fused_dropout(x, 0.7, training=False)):
        assert torch.equal(out, x)
    assert torch.equal(torch.get_rng_state(), state), "the generator must not advance when nothing is dropped"
    assert torch.equal(F.fused_dropout(x, 1.0, residual=residual), residual)
    assert torch.equal(F.fused_dropout(x, 1.0), torch.zeros_like(x))


def test_a_dropped_element_is_the_residual_whatever_the_input(float_isa):
    keep = _reference.dropout_keep(1000, SEED, 0.5)
    residual = torch.randn(1000)
    residual[::3] = -0.0
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.full((1000,), bad)
        for activation in ACTIVATIONS:
            out = raw.fused_dropout(x, None, residual, torch.tensor(SEED), 0.5, activation)
            assert torch.equal(out[~keep].view(torch.int32), residual[~keep].view(torch.int32))
            out = raw.fused_dropout(x, None, None, torch.tensor(SEED), 0.5, activation)
            assert torch.equal(out[~keep].view(torch.int32), torch.zeros(int((~keep).sum()), dtype=torch.int32))
            dx = raw.fused_dropout_backward(x, x, None, torch.tensor(SEED), 0.5, activation)
            assert torch.equal(dx[~keep], torch.zeros_like(dx[~keep]))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 0), (0, 7), (3, 5), (2, 3, 5), (2, 1, 3, 5), (2, 2, 1, 3, 5)])
def test_dimensions(float_isa, shape):
    x, residual = torch.randn(shape), torch.randn(shape)
    bias = torch.randn(shape[-1]) if shape else None
    out = F.fused_dropout(x, 0.5, bias=bias, residual=residual, activation="relu", seed=SEED)
    assert torch.equal(out, _reference.fused_dropout(x, bias, residual, torch.tensor(SEED), 0.5, "relu"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_misaligned_bases(float_isa, dtype):
    base = torch.randn(41, 73).to(dtype)
    storage = torch.randn(41 * 73 + 3).to(dtype)
    views = (
        base.T,
        base[::2, ::3],
        base[1:, 1:],
        base[:1].expand(9, 73),
        storage[1:2994].view(41, 73),
        storage[3:].view(73, 41),
    )
    for x in views:
        bias, residual = torch.randn(2 * x.shape[1]).to(dtype)[::2], x.flip(0)
        args = (bias, residual, torch.tensor(SEED), 0.4, "relu")
        out = raw.fused_dropout(x, *args)
        assert torch.equal(out, _reference.fused_dropout(x.contiguous(), *args))
        assert out.is_contiguous()
        dx = raw.fused_dropout_backward(x.flip(1), x, bias, torch.tensor(SEED), 0.4, "relu")
        assert torch.equal(dx, _reference.fused_dropout_backward(x.flip(1), x.contiguous(), *args[:1], *args[2:]))


def test_a_bias_of_another_float_is_converted():
    x = torch.randn(4, 10)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        bias = torch.randn(10).to(dtype)
        torch.testing.assert_close(F.fused_dropout(x, 0.0, bias=bias), x + bias.float())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    x = torch.zeros(4, 6, device=device)
    seed = torch.tensor(1, device=device)
    other = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    for p in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
            F.fused_dropout(x, p)
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
            raw.fused_dropout(x, None, None, seed, p, "none")
    with pytest.raises(ValueError, match=r"activation must be one of.*got 'swish'"):
        F.fused_dropout(x, 0.5, activation="swish")
    with pytest.raises(TypeError, match=r"x must be float32.*got int64"):
        F.fused_dropout(other(4, 6, dtype=torch.int64), 0.5)
    with pytest.raises(TypeError, match=r"bias must be float32.*got int32"):
        F.fused_dropout(x, 0.5, bias=other(6, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"bias must have shape \[6\], got \[5\]"):
        F.fused_dropout(x, 0.5, bias=other(5))
    with pytest.raises(ValueError, match=r"x must have at least 1 dimension, got shape \[\]"):
        F.fused_dropout(other(), 0.5, bias=other(1))
    with pytest.raises(TypeError, match="residual must be float32, got float16"):
        F.fused_dropout(x, 0.5, residual=other(4, 6, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"residual must have shape \[4, 6\], got \[6, 4\]"):
        F.fused_dropout(x, 0.5, residual=other(6, 4))
    with pytest.raises(ValueError, match=r"seed must be given when p > 0, got p=0.5"):
        raw.fused_dropout(x, None, None, None, 0.5, "none")
    with pytest.raises(TypeError, match="seed must be int64, got float32"):
        raw.fused_dropout(x, None, None, torch.tensor(1.0, device=device), 0.5, "none")
    with pytest.raises(ValueError, match=r"seed must be a 0-d tensor, got shape \[1\]"):
        raw.fused_dropout(x, None, None, torch.tensor([1], device=device), 0.5, "none")


@pytest.mark.cpu_only("float64 is the reference's, which a forced backend does not fall back to")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    f = lambda x, b, r: F.fused_dropout(x, 0.4, bias=b, activation=activation, residual=r, seed=SEED)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, bias, residual))


@pytest.mark.cpu_only(reason="stores past the caches")
def test_streaming_stores(float_isa):
    # Past the size where outputs bypass the caches: the same bits as in pieces below it, and a ragged end.
    x = torch.randn((8 << 20) + 13)
    out = raw.fused_dropout(x, None, None, torch.tensor(SEED), 0.3, "leaky_relu")
    assert torch.equal(out, _reference.fused_dropout(x, None, None, torch.tensor(SEED), 0.3, "leaky_relu"))


@pytest.mark.cpu_only("a forced backend does not fall back")
def test_float64_runs_on_the_reference_and_explain_says_so():
    x = torch.randn(3, 4)
    args = (None, None, None, 0.0, "none")
    assert _dispatch.explain("fused_dropout", x, *args).backend == "cpu"
    choice = _dispatch.explain("fused_dropout", x.double(), *args)
    assert choice.backend == "reference"
    assert "float64" in choice.reason
    assert torch.equal(raw.fused_dropout(x.double(), *args), x.double())


def test_a_seed_is_an_integer():
    with pytest.raises(TypeError, match="integer"):
        F.fused_dropout(torch.ones(8), 0.5, seed=1.7)
