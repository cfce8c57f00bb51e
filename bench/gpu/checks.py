"""CUDA kernels against the CPU's: values, masks, streams, graphs, gradients, errors. See gpu_check.py."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "softplus")
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = ((0, 5), (1, 1), (1, 7), (3, 8), (7, 255), (8, 256), (5, 1000), (33, 4096), (129, 513))
SEED = 0x123456789ABCDEF
P = 0.3
# On the device the arithmetic is the C library's of another vendor: a few units in the last place of the output dtype.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1.6e-2, "float16": 2e-3}


def check_values() -> None:
    """Every activation, dtype, shape, with and without bias and residual, forward and backward, against the CPU."""
    import torch

    raw = torch.ops.bigmodel_ext
    seed = torch.tensor(SEED)
    for name in DTYPES:
        dtype = getattr(torch, name)
        for shape in SHAPES:
            x, residual, grad = ((torch.randn(shape) * 3).to(dtype) for _ in range(3))
            for bias in (None, torch.randn(shape[1]), torch.randn(shape[1]).to(dtype)):
                for r in (None, residual):
                    for activation in ACTIVATIONS:
                        args = (x, bias, r, seed, P, activation)
                        back = (grad, x, bias, seed, P, activation)
                        for op, a in ((raw.fused_dropout, args), (raw.fused_dropout_backward, back)):
                            expected = op(*a)
                            ours = op(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in a)).cpu()
                            torch.testing.assert_close(ours, expected, rtol=TOLERANCE[name], atol=TOLERANCE[name])


def check_masks() -> None:
    """Bit-equal masks, for sizes around a warp's tile of 256 elements and for misaligned addresses."""
    import torch

    raw = torch.ops.bigmodel_ext
    for name in DTYPES:
        for numel in (1, 7, 8, 9, 255, 256, 257, 4095, 70_003, 3_000_001):
            for offset in (0, 1, 3):
                for p in (1e-9, 1 / 65536, 0.5, 1 - 1e-9, 1.0):
                    x = torch.ones(numel + offset, dtype=getattr(torch, name))
                    args = (None, None, torch.tensor(SEED), p, "none")
                    expected = raw.fused_dropout(x[offset:], *args)
                    device_args = (None, None, torch.tensor(SEED, device="cuda"), p, "none")
                    ours = raw.fused_dropout(x.cuda()[offset:], *device_args)
                    assert torch.equal(ours.cpu(), expected), (
                        f"mask differs: {name}, numel={numel}, offset={offset}, p={p}"
                    )


def check_special_values() -> None:
    """NaN and infinities as on the CPU, and exactly the residual where dropped."""
    import math

    import torch

    raw = torch.ops.bigmodel_ext
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45] * 64)
    residual = torch.randn(512)
    for activation in ACTIVATIONS:
        for seed in (None, torch.tensor(SEED)):
            p = 0.0 if seed is None else P
            args = (x, None, residual, seed, p, activation)
            expected = raw.fused_dropout(*args)
            ours = raw.fused_dropout(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in args)).cpu()
            torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def check_side_stream() -> None:
    """On a stream of its own the kernel waits for what that stream does before it."""
    import torch
    from bigmodel_ext import functional as F

    x = torch.randn(4096, 4096, device="cuda")
    expected = F.fused_dropout(x * 2 + 1, P, seed=SEED)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ours = F.fused_dropout(x * 2 + 1, P, seed=torch.tensor(SEED, device="cuda"))
    stream.synchronize()
    assert torch.equal(ours, expected), "the result on a side stream differs"


def check_graph_capture() -> None:
    """A captured graph reads its seed from device memory: replays draw new masks, equal to eager ones for that seed."""
    import torch
    from bigmodel_ext import functional as F

    x, seed = torch.randn(257, 1001, device="cuda"), torch.tensor(1, device="cuda")
    F.fused_dropout(x, P, seed=seed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = F.fused_dropout(x, P, activation="gelu", seed=seed)
    for value in (1, 2, SEED):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(out, F.fused_dropout(x, P, activation="gelu", seed=value)), (
            f"replay with seed {value} differs"
        )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = F.fused_dropout(x, P)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append((out != 0).clone())
    assert not torch.equal(*masks), "replays of a graph that draws its seed must differ"


def check_gradients() -> None:
    """Autograd on the device: the forward's mask, the gradient of every argument."""
    import torch
    from bigmodel_ext import _dispatch
    from bigmodel_ext import functional as F

    tensors = [torch.randn(s, device="cuda", requires_grad=True) for s in ((64, 96), (96,), (64, 96))]
    x, bias, residual = tensors
    out = F.fused_dropout(x, 0.5, bias=bias, residual=residual)
    dx, dbias, dresidual = torch.autograd.grad(out, tensors, torch.ones_like(out))
    keep = (out != residual).float()
    assert torch.equal(dx, keep * 2), "dx does not use the forward's mask"
    torch.testing.assert_close(dbias, dx.sum(0))
    assert torch.equal(dresidual, torch.ones_like(residual))
    args = (x, bias, residual, torch.tensor(1, device="cuda"), 0.5, "none")
    assert _dispatch.explain("fused_dropout", *args).backend == "cuda", "the CUDA backend was not chosen"


def check_errors() -> None:
    import torch

    x = torch.zeros(4, 6, device="cuda")
    for args in ((torch.zeros(6), None, torch.tensor(1, device="cuda")), (None, None, torch.tensor(1))):
        refusal = ""
        try:
            torch.ops.bigmodel_ext.fused_dropout(x, *args, P, "none")
        except TypeError as error:
            refusal = str(error)
        assert "must be on a CUDA device" in refusal, f"a CPU tensor among CUDA tensors was not refused: {refusal!r}"


def check_norm() -> None:
    """Dropout with a norm, forward and backward, against the CPU: h and masks bit-equal, the rest close."""
    import torch

    raw, seed = torch.ops.bigmodel_ext, torch.tensor(SEED)
    for name in DTYPES:
        dtype = getattr(torch, name)
        for shape in ((1, 1), (7, 70), (40, 256), (5, 1000), (600, 1024), (3, 4099), (9, 8192)):
            for norm in ("layer", "rms"):
                x, residual, gy, gh = (torch.randn(shape).to(dtype) for _ in range(4))
                bias, weight = torch.randn(2, shape[1])
                args = (x, bias, residual, seed, weight, None, P, "relu", norm, 1e-5)
                expected, ours = raw.fused_dropout_norm(*args), raw.fused_dropout_norm(*_to_device(args))
                assert torch.equal(ours[1].cpu(), expected[1]), f"h differs: {name} {shape}"
                back = (gy, gh, *expected[1:], x, bias, seed, weight, P, "relu", norm)
                expected += raw.fused_dropout_norm_backward(*back)
                ours += raw.fused_dropout_norm_backward(*_to_device(back))
                again = raw.fused_dropout_norm_backward(*_to_device(back))
                assert all(torch.equal(a, b) for a, b in zip(ours[4:], again, strict=True)), "a second run differs"
                for a, b in zip(ours, expected, strict=True):
                    scale = float(b.float().abs().max().clamp_min(1)) if b.numel() else 1.0
                    tolerance = 4 * TOLERANCE[name]
                    torch.testing.assert_close(a.cpu().float(), b.float(), rtol=tolerance, atol=tolerance * scale)


def check_small_batches() -> None:
    """Binary codes bit-equal to the CPU's, int8 weights close, from one row to several tiles of them."""
    import bigmodel_ext as bm
    import torch

    for n, k in ((1, 8), (70, 200), (129, 1031), (512, 4096)):
        linear = torch.nn.Linear(k, n)
        coded = bm.nn.BinaryCodedLinear.from_float(linear, bits=3, group_size=64, iterations=1)
        weight_only = bm.nn.Int8WeightOnlyLinear.from_float(linear)
        for m in (1, 2, 8, 9, 33):
            for name in DTYPES:
                x = torch.randn(m, k).to(getattr(torch, name))
                with torch.inference_mode():
                    assert torch.equal(coded.cuda()(x.cuda()).cpu(), coded.cpu()(x)), f"binary {m}x{n}x{k} {name}"
                    ours, expected = weight_only.cuda()(x.cuda()).cpu(), weight_only.cpu()(x)
                tolerance = max(TOLERANCE[name], 1e-5)  # sums in another order
                torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * k**0.5)


def check_capture() -> None:
    """Each op in a graph: its replay gives what the op gives."""
    import bigmodel_ext as bm
    import torch

    linear = torch.nn.Linear(256, 192, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 256, device="cuda", dtype=torch.bfloat16)
    seed = torch.tensor(3, device="cuda")
    calls: list[Callable[[], torch.Tensor]] = [
        lambda layer=layer: layer(x)
        for layer in (bm.nn.Int8Linear.from_float(linear), bm.nn.Int8WeightOnlyLinear.from_float(linear),
                      bm.nn.BinaryCodedLinear.from_float(linear))
    ]  # fmt: skip
    calls.append(lambda: bm.functional.fused_dropout_norm(x, P, seed=seed)[0])
    with torch.inference_mode():
        for i, call in enumerate(calls):
            expected = call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = call()
            graph.replay()
            assert torch.equal(out, expected), f"call {i}: the replay differs"


def check_many_calls() -> None:
    """Memory does not grow."""
    import torch
    from bigmodel_ext import functional as F

    x = torch.randn(64, 256, device="cuda")
    for count in (100, 10_000):
        for _ in range(count):
            F.fused_dropout_norm(x, P)
        torch.cuda.synchronize()
        if count == 100:
            before = torch.cuda.memory_reserved()
    assert torch.cuda.memory_reserved() == before, "memory grew"


def _to_device(args: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    return tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)


CHECKS: tuple[Callable[[], None], ...] = (
    check_gradients,
    check_masks,
    check_values,
    check_special_values,
    check_side_stream,
    check_graph_capture,
    check_errors,
    check_norm,
    check_small_batches,
    check_capture,
    check_many_calls,
)


def run_checks() -> list[tuple[str, str]]:
    results = []
    for check in CHECKS:
        try:
            check()
            results.append((check.__name__, "passed"))
        except Exception as error:
            traceback.print_exc()
            results.append((check.__name__, f"FAILED: {str(error).strip().splitlines()[0] if str(error) else error!r}"))
        print(*results[-1], flush=True)
    return results
