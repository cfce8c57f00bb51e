"""Which elements are dropped: the same ones on every instruction set, thread and pass, for one seed."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from shapes import EXECUTED, INTERPRETED, covering
from torch.utils.checkpoint import checkpoint

raw = torch.ops.bigmodel_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEED = 0x123456789


@pytest.mark.parametrize(("dtype", "p"), covering(DTYPES, (1e-9, 1 / 65536, 0.1, 0.5, 0.999, 1 - 1e-9, 1.0)))
def test_mask_is_the_reference_s_everywhere(float_isa, threads, dtype, p):
    numel = 70_003  # more than one thread's grain, and a part of a chunk at the end
    keep = _reference.dropout_keep(numel, SEED, p)
    ones = torch.ones(numel, dtype=dtype)
    out = raw.fused_dropout(ones, None, None, torch.tensor(SEED), p, "none")
    assert torch.equal(out != 0, keep)
    scale = torch.tensor(_reference.dropout_scale(p)).to(dtype)
    assert torch.equal(out[keep], scale.expand(int(keep.sum())))
    dx = raw.fused_dropout_backward(ones, ones, None, torch.tensor(SEED), p, "none")
    assert torch.equal(dx, out)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate_is_within_five_sigma(p):
    n = 1 << (16 if INTERPRETED else 20)
    kept = (F.fused_dropout(torch.ones(n), p) != 0).sum().item()
    assert abs(kept - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p)) + n / 131072  # p in steps of 1/65536


def test_manual_seed_governs_the_mask():
    x = torch.ones(1000)

    def draw(grad: bool) -> torch.Tensor:
        return F.fused_dropout(x.clone().requires_grad_(grad), 0.5).detach()

    torch.manual_seed(3)
    first, second = draw(False), draw(False)
    assert not torch.equal(first, second), "each call draws a new seed"
    torch.manual_seed(3)
    assert torch.equal(draw(True), first)  # the same draw with and without a graph
    assert torch.equal(draw(True), second)
    with torch.inference_mode():
        torch.manual_seed(3)
        assert torch.equal(draw(False), first)
    torch.manual_seed(3)
    assert torch.equal(draw(False), first)
    assert torch.equal(F.fused_dropout(x, 0.5, seed=11), F.fused_dropout(x, 0.5, seed=torch.tensor(11)))


def test_the_first_call_in_a_thread_may_be_in_inference_mode():
    def in_thread() -> None:
        with torch.inference_mode():
            F.fused_dropout(torch.ones(4), 0.5)
        F.fused_dropout(torch.ones(4), 0.5)  # writes the same scratch seed, now as an ordinary tensor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_thread).result()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_use_the_forward_s_mask(float_isa, dtype):
    x, bias, residual = (torch.randn(s, dtype=dtype, requires_grad=True) for s in ((40, 70), (70,), (40, 70)))
    grad = torch.randn(40, 70).to(dtype)
    out = F.fused_dropout(x, 0.5, bias=bias, activation="none", residual=residual, seed=7)
    dx, dbias, dresidual = torch.autograd.grad(out, (x, bias, residual), grad)
    keep = _reference.dropout_keep(40 * 70, 7, 0.5).reshape(40, 70)
    assert torch.equal(out[~keep], residual[~keep])
    assert torch.equal(dx, torch.where(keep, grad * 2, 0))
    assert torch.equal(dresidual, grad)
    torch.testing.assert_close(dbias, dx.float().sum(0).to(dtype))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_sees_the_same_mask(use_reentrant):
    x = torch.randn(50, 60, requires_grad=True)
    layer = lambda x: F.fused_dropout(x * 1.0, 0.5, activation="gelu")  # noqa: E731
    torch.manual_seed(5)
    out = checkpoint(layer, x, use_reentrant=use_reentrant)
    (dx,) = torch.autograd.grad(out.sum(), x) if not use_reentrant else (out.sum().backward(), x.grad)[1:]
    torch.manual_seed(5)
    plain = layer(x)
    assert torch.equal(out, plain)
    assert torch.equal(dx, torch.autograd.grad(plain.sum(), x)[0])


def test_compiled_code_sees_the_same_mask():
    def layer(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = F.fused_dropout(x, 0.5, bias=bias, activation="gelu")
        return F.fused_dropout(x.sin(), 0.3, residual=x)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager" if EXECUTED else "inductor")
    x, bias = torch.randn(20, 30, requires_grad=True), torch.randn(30, requires_grad=True)
    results = []
    for f in (layer, compiled, compiled):
        torch.manual_seed(9)
        out = f(x, bias)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, bias)), torch.get_rng_state()))
    for eager, ours in zip(results[0] * 2, results[1] + results[2], strict=True):
        torch.testing.assert_close(ours, eager)
    assert torch.equal(results[1][0] == 0, results[0][0] == 0)


@pytest.mark.cpu_only(reason="the interpreter and the emulator run one call at a time")
def test_many_threads_at_once():
    x, residual = torch.randn(200, 300), torch.randn(200, 300)
    expected = [F.fused_dropout(x, 0.5, activation="gelu", residual=residual, seed=s) for s in range(8)]

    def call(s: int) -> bool:
        same = (F.fused_dropout(x, 0.5, activation="gelu", residual=residual, seed=s) for _ in range(20))
        F.fused_dropout(x, 0.5)
        return all(torch.equal(out, expected[s]) for out in same)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


@pytest.mark.cpu_only(reason="threads that share one call's work")
def test_the_same_bits_for_any_number_of_threads(float_isa):
    x = torch.randn(1_000_003)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(F.fused_dropout(x, 0.3, activation="gelu", seed=SEED))
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)
