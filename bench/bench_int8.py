"""int8_linear with packed weights, float32 in and out, quantization of the activations included, against torch's float
and int8 layers. Run: ``python -m bench.bench_int8 [--threads N]``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from bigmodel_ext import _reference, functional
from bigmodel_ext.formats.int8 import pack
from torch import Tensor
from torch.nn.functional import linear

from bench import harness

SHAPES = (  # M, K, N
    (1, 384, 1536), (1, 768, 3072), (1, 4096, 4096), (16, 768, 3072), (64, 768, 768), (128, 384, 384),
    (128, 768, 3072), (1576, 768, 3072), (512, 4096, 1024),
)  # fmt: skip
ENGINES = ("x86", "onednn", "fbgemm")


def _torch_dynamic(engine: str, x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor] | None:
    """torch.ao's dynamically quantized linear layer (per-tensor u8 activations, per-channel s8 weights)."""
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        scale = weight.abs().amax(1).clamp(min=1e-8) / 127
        zero = torch.zeros(weight.shape[0], dtype=torch.int64)
        quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantized, bias)

        def run() -> Tensor:
            return torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)

        error = (run() - linear(x, weight, bias)).abs().max() / linear(x, weight, bias).abs().max()
        if not error < 0.05:
            raise RuntimeError(f"wrong by {float(error):.3f} of the largest output")
        return run
    except RuntimeError as reason:
        print(f"torch {engine} left out: {str(reason).splitlines()[0]}")
        return None
    finally:
        torch.backends.quantized.engine = before


def _case(m: int, k: int, n: int) -> harness.Case:
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    weight_q, weight_scale = _reference.quantize_rows(weight)
    packed = pack(weight_q)
    x16, weight16, bias16 = x.bfloat16(), weight.bfloat16(), bias.bfloat16()

    def ours() -> Tensor:
        return functional.int8_linear(x, packed, weight_scale, bias)

    def verify() -> None:
        expected = _reference.int8_linear(x, weight_q, weight_scale, bias)
        assert torch.equal(ours(), expected), f"int8_linear {m}x{k}x{n} differs from the reference"

    candidates: dict[str, Callable[[], object]] = {
        "int8_linear": ours,
        "torch float32": lambda: linear(x, weight, bias),
        "torch bfloat16": lambda: linear(x16, weight16, bias16),
        "unpacked": lambda: functional.int8_linear(x, weight_q, weight_scale, bias),
    }
    for engine in ENGINES:
        run = _torch_dynamic(engine, x, weight, bias) if engine in torch.backends.quantized.supported_engines else None
        if run:
            candidates[f"torch {engine}"] = run
    operations, traffic = 2.0 * m * k * n, float(k * n + 4 * m * (k + n))
    return harness.Case("int8_linear", f"M={m} K={k} N={n}", candidates, verify, operations, traffic)


def cases() -> Iterator[harness.Case]:
    for shape in SHAPES:
        yield _case(*shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for engine in ENGINES:
        if engine not in torch.backends.quantized.supported_engines:
            print(f"torch {engine} left out: this torch has no such engine")
    with torch.inference_mode():
        harness.run(cases(), f"int8_{arguments.threads}", arguments.rounds)


if __name__ == "__main__":
    main()
