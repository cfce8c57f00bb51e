"""Norm-fused dropout, weight-only int8 and binary codes on CUDA: each barrier is needed, and results do not depend on
the order in which threads run. On the emulator, whatever backend is chosen."""

import pytest
import torch
from bigmodel_ext import _native, _reference
from bigmodel_ext.formats import int8
from binary_cases import make
from emulation import SCHEDULES, sites_of, unmissed

pytestmark = pytest.mark.skipif(not _native.has_emulated(), reason="built without BIGMODEL_EMULATE")

# Shuffles and products are no waits: they give values, and to skip one is to have none.
SEED, EPS = torch.tensor(0x123456789), 1e-5


@pytest.fixture(scope="module")
def emulated():
    return _native.load_emulated()


@pytest.fixture(scope="module")
def kernels():
    from bigmodel_ext.backends.cuda import dropout, weights

    return dropout, weights


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def norm_forward(native, dropout, rows, features):
    x, residual = torch.randn(2, rows, features)
    weight = torch.randn(features)
    args = (x, None, residual, SEED, weight, None, 0.3, "relu", "layer", EPS)
    return lambda: close(dropout.fused_dropout_norm(native, *args), _reference.fused_dropout_norm(*args))


def norm_backward(native, dropout, rows, features):
    x, gy, gh = torch.randn(3, rows, features)
    weight, bias = torch.randn(2, features)
    out = _reference.fused_dropout_norm(x, bias, None, SEED, weight, None, 0.3, "relu", "layer", EPS)
    args = (gy, gh, *out[1:], x, bias, SEED, weight, 0.3, "relu", "layer")
    wanted = _reference.fused_dropout_norm_backward(*args)
    return lambda: close(dropout.fused_dropout_norm_backward(native, *args), wanted)


def backward_bias(native, dropout, rows, features):
    grad, x = torch.randn(2, rows, features)
    args = (grad, x, torch.randn(features), SEED, 0.3, "relu")
    return lambda: close(
        dropout.fused_dropout_backward_bias(native, *args), _reference.fused_dropout_backward_bias(*args)
    )


def weight_only(native, weights, m, n, k):
    x, weight = torch.randn(m, k), torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scale, packed = torch.rand(n) * 0.01, int8.pack(weight)
    wanted = (x.double() @ weight.double().T) * scale
    run = weights.int8_weight_only_linear
    return lambda: close([run(native, x, packed, scale, None).double()], [wanted])


def binary(native, weights, m, n, k):
    args = make(m, n, k, 3, 64)
    wanted = _reference.binary_coded_linear(*args)

    def run():
        assert torch.equal(weights.binary_coded_linear(native, *args), wanted)

    return run


CASES = {
    # a row to a block, and, backward, several rows to a block with a barrier of its own each; more rows than blocks
    "norm": (0, norm_forward, (3, 1300)),
    "norm of several groups": (0, norm_backward, (40, 700)),
    "norm of one group": (0, norm_backward, (20, 4600)),
    "bias": (0, backward_bias, (40, 700)),
    "weight only": (1, weight_only, (17, 40, 700)),  # three tiles of rows share the sums' memory
    "binary": (1, binary, (5, 70, 900)),
    "wide binary": (1, binary, (33, 70, 300)),
}


@pytest.mark.parametrize("name", CASES)
def test_any_order_of_threads(emulated, kernels, name):
    family, build, sizes = CASES[name]
    run = build(emulated, kernels[family], *sizes)
    try:
        for schedule, seed in SCHEDULES:
            emulated.configure(schedule=schedule, seed=seed)
            run()
    finally:
        emulated.configure()


@pytest.mark.parametrize("name", CASES)
def test_every_wait_is_needed(emulated, kernels, name):
    family, build, sizes = CASES[name]
    run = build(emulated, kernels[family], *sizes)
    assert sites_of(emulated, run), "no wait was reached"
    assert unmissed(emulated, run) == []
