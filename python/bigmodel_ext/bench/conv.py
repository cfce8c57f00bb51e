"""int8_conv2d and sparse_conv2d, float32 in and out, quantization of the activations included, against torch's float
and int8 convolutions.

`torch fp32` is the better of contiguous and channels last, found before the timing and named in the column `layout`;
`onednn packed` has its weights reordered beforehand. GOPS counts the dense convolution's operations.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bigmodel_ext import _reference
from bigmodel_ext.bench import harness, limits, peers
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats import csr, int8_conv

ENGINES = ("x86", "onednn")
SPARSITIES = (0.7, 0.9)
LAST = torch.channels_last


@dataclass(frozen=True)
class Shape:
    c: int
    n: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def args(self) -> tuple[int, int, int, int]:
        """After the bias, for conv2d."""
        return self.stride, self.padding, 1, self.groups

    @property
    def window(self) -> tuple[list[int], list[int], list[int], list[int], int]:
        return [self.kernel] * 2, [self.stride] * 2, [self.padding] * 4, [1, 1], self.groups

    def name(self, batch: int) -> str:
        grouped = f" g{self.groups}" if self.groups > 1 else ""
        return f"B{batch} {self.c}->{self.n} {self.size}x{self.size} k{self.kernel} s{self.stride}{grouped}"

    def operations(self, batch: int) -> float:
        out = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return 2.0 * batch * self.n * out**2 * self.c // self.groups * self.kernel**2


SHAPES = (
    Shape(64, 64, 56), Shape(256, 64, 56, 1), Shape(64, 256, 56, 1), Shape(128, 128, 28, 3, 2), Shape(256, 256, 14),
    Shape(512, 512, 7), Shape(3, 64, 224, 7, 2), Shape(32, 32, 112, groups=32), Shape(128, 128, 56, groups=32),
)  # fmt: skip


def _close(ours: Tensor, wanted: Tensor, share: float) -> None:
    error = float((ours - wanted).abs().max() / wanted.abs().max())
    if not error <= share:
        raise RuntimeError(f"wrong by {error:.4f} of the largest output")


def _median(run: Callable[[], object]) -> float:
    return statistics.median(harness.interleave({"": run}, 3)[""])


def _torch_float(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> tuple[Callable[[], Tensor], str]:
    last = x.to(memory_format=LAST), weight.to(memory_format=LAST)
    runs = {
        "contiguous": lambda: conv2d(x, weight, bias, *shape.args),
        "channels last": lambda: conv2d(*last, bias, *shape.args),
    }
    layout = min(runs, key=lambda name: _median(runs[name]))
    return runs[layout], layout


def _packed(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> Callable[[], Tensor]:
    numbers = ([shape.padding] * 2, [shape.stride] * 2, [1, 1], shape.groups)
    last = x.to(memory_format=LAST)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, list(x.shape))

    def run() -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(last, packed, bias, *numbers, "none", [], "")

    _close(run(), conv2d(x, weight, bias, *shape.args), 1e-3)
    return run


def _torch_int8(engine: str, kind: str, x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> Callable[[], Tensor]:
    """torch's quantized convolution: dynamic, or static with the input quantized and the output dequantized."""
    if engine not in torch.backends.quantized.supported_engines:
        raise peers.Missing(f"this torch has no engine {engine}")
    before = torch.backends.quantized.engine
    wanted, last = conv2d(x, weight, bias, *shape.args), x.to(memory_format=LAST)
    try:
        torch.backends.quantized.engine = engine
        scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-8) / 127
        zero = torch.zeros(weight.shape[0], dtype=torch.int64)
        quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        numbers = ([shape.stride] * 2, [shape.padding] * 2, [1, 1], shape.groups)
        packed = torch.ops.quantized.conv2d_prepack(quantized, bias, *numbers)
        in_scale, out_scale = float(x.abs().max()) / 127, float(wanted.abs().max()) / 127

        def static() -> Tensor:
            q = torch.quantize_per_tensor(last, in_scale, 128, torch.quint8)
            return torch.ops.quantized.conv2d(q, packed, out_scale, 128).dequantize()

        def dynamic() -> Tensor:
            return torch.ops.quantized.conv2d_dynamic(x, packed, False)

        run = static if kind == "static" else dynamic
        _close(run(), wanted, 0.05)
        return run
    finally:
        torch.backends.quantized.engine = before


def _int8_peers(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for engine, kind in itertools.product(ENGINES, ("static", "dynamic")):
        name = f"torch {engine} {kind}"
        run = peers.tried(name, partial(_torch_int8, engine, kind, x, weight, bias, shape))
        if run:
            found[name] = run
    return found


def _case(
    op: str,
    shape: Shape,
    batch: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ours: Callable[[Tensor], Tensor],
    verify: Callable[[], None],
    others: dict[str, Callable[[], object]],
) -> harness.Case:
    """Ours is timed channels last; contiguous it is one of the peers."""
    last = x.to(memory_format=LAST)
    dense, layout = _torch_float(x, weight, bias, shape)
    x16, w16, b16 = (t.bfloat16() for t in (last, weight.to(memory_format=LAST), bias))
    candidates: dict[str, Callable[[], object]] = {
        op: lambda: ours(last),
        "torch fp32": dense,
        "torch bf16": lambda: conv2d(x16, w16, b16, *shape.args),
        **others,
        "ours contiguous": lambda: ours(x),
    }
    packed = peers.tried("onednn packed", partial(_packed, x, weight, bias, shape))
    if packed:
        candidates["onednn packed"] = packed
    operations = shape.operations(batch)
    return harness.Case(
        op, shape.name(batch), candidates, verify, operations,
        limit=limits.linear("int8", operations, 0.0), extra={"layout": layout, "dtype": "int8"},
    )  # fmt: skip


def int8_cases(shapes: Sequence[Shape], batches: list[int]) -> Iterator[harness.Case]:
    for batch in batches:
        for shape in shapes:
            x, bias = torch.randn(batch, shape.c, shape.size, shape.size), torch.randn(shape.n)
            weight = torch.randn(shape.n, shape.c // shape.groups, shape.kernel, shape.kernel)
            q, scale = _reference.quantize_rows(weight.flatten(1))
            args = (int8_conv.pack(q.view(weight.shape), shape.groups), scale, bias, *shape.window)

            def ours(x: Tensor, args: tuple[Any, ...] = args) -> Tensor:
                return torch.ops.bigmodel_ext.int8_conv2d.default._op(x, *args)

            def verify(x: Tensor = x, args: tuple[Any, ...] = args, shape: Shape = shape) -> None:
                expected = _reference.int8_conv2d(x[:1], *args)
                assert torch.equal(ours(x)[:1], expected), f"int8_conv2d {shape} differs from the reference"

            others = _int8_peers(x, weight, bias, shape)
            yield _case("int8_conv2d", shape, batch, x, weight, bias, ours, verify, others)


def sparse_cases(shapes: Sequence[Shape], batches: list[int]) -> Iterator[harness.Case]:
    for batch in batches:
        for shape in shapes:
            for sparsity in SPARSITIES:
                x, bias = torch.randn(batch, shape.c, shape.size, shape.size), torch.randn(shape.n)
                weight = torch.randn(shape.n, shape.c // shape.groups, shape.kernel, shape.kernel)
                weight[torch.rand(weight.shape) < sparsity] = 0.0
                panel = csr.panel_for(1 - sparsity)
                args = (*csr.pack(weight.flatten(1), panel=panel), bias, *shape.window, shape.n, panel)

                def ours(x: Tensor, args: tuple[Any, ...] = args) -> Tensor:
                    return torch.ops.bigmodel_ext.sparse_conv2d.default._op(x, *args)

                def verify(x: Tensor = x, w: Tensor = weight, b: Tensor = bias, shape: Shape = shape) -> None:
                    _close(ours(x), conv2d(x, w, b, *shape.args), 1e-4)

                case = _case("sparse_conv2d", shape, batch, x, weight, bias, ours, verify, {})
                real = case.operations * (1 - sparsity)
                yield replace(
                    case, shape=f"{case.shape} {sparsity:.0%}", real_operations=real,
                    limit=limits.linear("fp32", real, 0.0),
                    extra={**case.extra, "dtype": "fp32", "panel": panel, "sparsity": sparsity},
                )  # fmt: skip


def cases(selection: Selection) -> Iterator[harness.Case]:
    warnings.filterwarnings("ignore", message="torch.quantize_per_")  # deprecated, but what these peers need
    shapes = SHAPES[:2] if selection.size == "quick" else SHAPES
    batches = [1, 8] if selection.size == "full" else [1]
    with torch.inference_mode():
        for case in itertools.chain(int8_cases(shapes, batches), sparse_cases(shapes, batches)):
            ours = next(iter(case.candidates))
            wanted = {n: run for n, run in case.candidates.items() if n == ours or selection.wants(n)}
            yield replace(case, candidates=wanted)
