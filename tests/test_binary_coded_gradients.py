"""binary_coded_linear: gradients, and scales that are trained."""

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext.formats import binary_coded as format
from binary_cases import make
from torch import nn


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """But where a test asks for more."""


def test_gradients():
    """x and bias through the decoded weight; the scales through the quantized x, which is what multiplies them."""
    x, packed, scales, bias, n, size = make(5, 70, 50, 3, 24)
    signs, alpha = format.from_panels(packed, n, 50, size), format.scales_from_panels(scales, n)
    spins = format.unpack(signs, 50).double()
    for activation in ("none", "gelu"):
        leaves = [t.clone().requires_grad_() for t in (x, scales, bias)]
        y = torch.ops.bigmodel_ext.binary_coded_linear(leaves[0], packed, leaves[1], leaves[2], n, size, activation)
        grad = torch.randn_like(y)
        y.backward(grad)
        q, scale = _reference.quantize_rows(x)
        rounded = (q * scale[:, None]).double().requires_grad_()
        wide_alpha, wide_bias = alpha.double().requires_grad_(), bias.double().requires_grad_()
        weight = (wide_alpha.repeat_interleave(size, 1)[:, :50].transpose(1, 2) * spins).sum(1)
        z = nn.functional.linear(rounded, weight, wide_bias)
        _reference.activate(z, activation).backward(grad.double())
        for got, want in (
            (leaves[0].grad, rounded.grad),
            (format.scales_from_panels(leaves[1].grad, n), wide_alpha.grad),
            (leaves[2].grad, wide_bias.grad),
        ):
            torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.cpu_only(reason="trains for many steps")
def test_fine_tuning_the_scales_lowers_the_loss():
    linear, x = nn.Linear(64, 32), torch.randn(256, 64)
    layer = bm.nn.BinaryCodedLinear.from_float(linear, bits=2, group_size=64)
    target, best = linear(x).detach(), layer.scales.clone()
    fitted = (layer(x) - target).square().mean().item()
    layer.scales = (0.5 * best).requires_grad_()
    losses = []
    for _ in range(60):
        loss = (layer(x) - target).square().mean()
        (gradient,) = torch.autograd.grad(loss, [layer.scales])
        with torch.no_grad():
            layer.scales -= (0.2 * gradient.float()).half()
        losses.append(loss.item())
    assert losses[0] > 2 * fitted
    assert losses[-1] < 1.05 * fitted
