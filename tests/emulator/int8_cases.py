"""What the tests of the CUDA int8 kernels share: operands, and calls of one kernel by its name."""

import math

import torch
from emulation import unmissed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "softplus")
GUARD = 64


def int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def guarded(*shape, dtype):
    """An output with recognizable bytes before and behind it: a view, and all of it."""
    whole = torch.full((2 * GUARD + math.prod(shape),), 77, dtype=dtype)
    return whole[GUARD : whole.numel() - GUARD].view(shape), whole


def check_guards(whole):
    assert (whole[:GUARD] == 77).all()
    assert (whole[-GUARD:] == 77).all()


def workspace(size):
    """What nobody wrote is neither zero nor small."""
    return torch.full((size,), 0x7F, dtype=torch.uint8)


def mm(native, a, b, kernel, splits=1):
    (m, k), n = a.shape, b.shape[0]
    plan = native.int8_plan(m, n, k, floats=False, device=0, kernel=kernel, splits=splits)
    out, whole = guarded(m, n, dtype=torch.int32)
    native.int8_mm(a, b, out, plan, workspace(plan[2]))
    check_guards(whole)
    return out


def linear(native, x, weight, weight_scale, bias, kernel, splits=1, activation="none", input_scale=None):
    (m, k), n = x.shape, weight.shape[0]
    plan = native.int8_plan(m, n, k, floats=True, device=0, kernel=kernel, splits=splits)
    out, whole = guarded(m, n, dtype=x.dtype)
    native.int8_linear(x, weight, weight_scale, bias, out, activation, input_scale, plan, workspace(plan[2]))
    check_guards(whole)
    return out


def make(m, n, k, dtype=torch.float32):
    x = (torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]).to(dtype)
    return x, int8(n, k), torch.rand(n) * 0.01, torch.randn(n).to(dtype)


def check_mm(native, a, b, kernel, splits=1):
    assert torch.equal(mm(native, a, b, kernel, splits).long(), a.long() @ b.long().T)


def edges(tile):
    return (1, tile - 1, tile, tile + 1)


def check_waits(native, check, launch, count):
    """That the launch has `count` synchronising places, and that without any of them `check` fails under some
    schedule."""
    native.take_reports()
    check()
    places = {place for report in native.take_reports() if report["kernel"] == launch for place in report["sites"]}
    assert len(places) == count, places
    assert places.isdisjoint(unmissed(native, check))
