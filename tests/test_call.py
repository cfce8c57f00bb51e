"""functional's way round torch's dispatcher: taken where nothing observes the call, and never where something does."""

import pytest
import torch
from bigmodel_ext import _dispatch, _reference, functional
from bigmodel_ext.formats import int8
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

OP = torch.ops.bigmodel_ext.int8_linear.default


@pytest.fixture
def layer():
    weight = torch.randn(16, 24)
    q, scale = _reference.quantize_rows(weight)
    return int8.pack(q), scale, torch.randn(16)


@pytest.fixture
def direct_calls(monkeypatch):
    """Arguments of each call that goes round the dispatcher."""
    calls, kernel = [], _dispatch.cpu_kernels[OP]

    def counted(*args):
        calls.append(args)
        return kernel(*args)

    monkeypatch.setitem(_dispatch.cpu_kernels, OP, counted)
    return calls


def test_plain_calls_without_gradients_go_round_the_dispatcher(layer, direct_calls):
    x = torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(functional.int8_linear(x, *layer), _reference.int8_linear(x, *layer))
    assert len(direct_calls) == 1


def observed_by_grad(f, x):
    with torch.enable_grad():
        assert f(x.requires_grad_()).requires_grad


def observed_by_vmap(f, x):
    assert torch.equal(torch.vmap(f)(x), f(x))


def observed_by_trace(f, x):
    traced = torch.jit.trace(f, (x,))
    other = torch.randn_like(x)
    assert torch.equal(traced(other), OP(other, *f.layer))


def observed_by_make_fx(f, x):
    assert "bigmodel_ext.int8_linear" in make_fx(f)(x).code


def observed_by_profiler(f, x):
    with torch.profiler.profile() as profile:
        f(x)
    assert "bigmodel_ext::int8_linear" in {event.key for event in profile.key_averages()}


def observed_by_fake_weights(f, x):
    fake = FakeTensorMode().from_tensor(f.layer[0])
    with pytest.raises(AssertionError, match="FakeTensor"):
        functional.int8_linear(x, fake, *f.layer[1:])


@pytest.mark.parametrize(
    "observe",
    [observed_by_grad, observed_by_vmap, observed_by_trace, observed_by_make_fx, observed_by_profiler,
     observed_by_fake_weights],
)  # fmt: skip
def test_observed_calls_go_through_the_op(layer, observe):
    def f(x):
        return functional.int8_linear(x, *layer)

    f.layer = layer
    with torch.no_grad():
        observe(f, torch.randn(3, 24))


def test_lazily_negated_arguments_are_resolved(layer):
    packed, scale, _ = layer
    x, b = torch.randn(3, 24), torch.randn(16)
    with torch.no_grad():
        y = functional.int8_linear(torch._neg_view(x), packed, scale, torch._neg_view(b))
    assert torch.equal(y, _reference.int8_linear(-x, packed, scale, -b))


def test_the_error_of_a_direct_call_is_the_kernels(layer):
    packed, scale, bias = layer
    with torch.no_grad(), pytest.raises(ValueError, match=r"bias must have shape \[16\]"):
        functional.int8_linear(torch.randn(3, 24), packed, scale, bias[:5])
