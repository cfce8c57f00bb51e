"""int8_conv2d and sparse_conv2d, float32 in and out, quantization of the activations included, against torch's float
and int8 convolutions: ``python -m bench.bench_conv [int8|sparse] [filter of shapes] [--batch 1 8] [--threads N]``.

`torch float32` is the better of contiguous and channels last, found before the timing and named in the column `layout`;
`onednn packed` has its weights reordered beforehand. GOPS counts the dense convolution's operations.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from bigmodel_ext import _reference
from bigmodel_ext.formats import csr, int8_conv
from torch import Tensor
from torch.nn.functional import conv2d

from bench import harness

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


def _packed(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> Callable[[], Tensor] | None:
    numbers = ([shape.padding] * 2, [shape.stride] * 2, [1, 1], shape.groups)
    last = x.to(memory_format=LAST)
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, list(x.shape))
        run = lambda: torch.ops.mkldnn._convolution_pointwise(last, packed, bias, *numbers, "none", [], "")  # noqa: E731
        _close(run(), conv2d(x, weight, bias, *shape.args), 1e-3)
        return run
    except RuntimeError as reason:
        print(f"onednn packed left out: {str(reason).splitlines()[0][:90]}")
        return None


def _torch_int8(engine: str, x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """torch's quantized convolution: dynamic, and static with the input quantized and the output dequantized."""
    found: dict[str, Callable[[], Tensor]] = {}
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

        for name, run in (("static", static), ("dynamic", dynamic)):
            try:
                _close(run(), wanted, 0.05)
                found[f"torch {engine} {name}"] = run
            except RuntimeError as reason:
                print(f"torch {engine} {name} left out: {str(reason).splitlines()[0][:90]}")
    except RuntimeError as reason:
        print(f"torch {engine} left out: {str(reason).splitlines()[0][:90]}")
    finally:
        torch.backends.quantized.engine = before
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
    peers: dict[str, Callable[[], object]],
) -> harness.Case:
    """Ours is timed channels last; contiguous it is one of the peers."""
    last = x.to(memory_format=LAST)
    dense, layout = _torch_float(x, weight, bias, shape)
    low = [t.bfloat16() for t in (last, weight.to(memory_format=LAST), bias)]
    candidates: dict[str, Callable[[], object]] = {
        op: lambda: ours(last),
        "torch float32": dense,
        "torch bfloat16": lambda: conv2d(*low, *shape.args),
        **peers,
        "ours contiguous": lambda: ours(x),
    }
    packed = _packed(x, weight, bias, shape)
    if packed:
        candidates["onednn packed"] = packed
    operations = shape.operations(batch)
    return harness.Case(op, shape.name(batch), candidates, verify, operations, extra={"layout": layout})


def int8_cases(shapes: list[Shape], batches: list[int]) -> Iterator[harness.Case]:
    for batch in batches:
        for shape in shapes:
            x, bias = torch.randn(batch, shape.c, shape.size, shape.size), torch.randn(shape.n)
            weight = torch.randn(shape.n, shape.c // shape.groups, shape.kernel, shape.kernel)
            q, scale = _reference.quantize_rows(weight.flatten(1))
            args = (int8_conv.pack(q.view(weight.shape), shape.groups), scale, bias, *shape.window)

            def ours(x: Tensor, args: tuple[object, ...] = args) -> Tensor:
                return torch.ops.bigmodel_ext.int8_conv2d.default._op(x, *args)

            def verify(x: Tensor = x, args: tuple[object, ...] = args, shape: Shape = shape) -> None:
                expected = _reference.int8_conv2d(x[:1], *args)
                assert torch.equal(ours(x)[:1], expected), f"int8_conv2d {shape} differs from the reference"

            engines = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]
            peers = {k: v for e in engines for k, v in _torch_int8(e, x, weight, bias, shape).items()}
            yield _case("int8_conv2d", shape, batch, x, weight, bias, ours, verify, peers)


def sparse_cases(shapes: list[Shape], batches: list[int]) -> Iterator[harness.Case]:
    for batch in batches:
        for shape in shapes:
            for sparsity in SPARSITIES:
                x, bias = torch.randn(batch, shape.c, shape.size, shape.size), torch.randn(shape.n)
                weight = torch.randn(shape.n, shape.c // shape.groups, shape.kernel, shape.kernel)
                weight[torch.rand(weight.shape) < sparsity] = 0.0
                panel = csr.panel_for(1 - sparsity)
                args = (*csr.pack(weight.flatten(1), panel=panel), bias, *shape.window, shape.n, panel)

                def ours(x: Tensor, args: tuple[object, ...] = args) -> Tensor:
                    return torch.ops.bigmodel_ext.sparse_conv2d.default._op(x, *args)

                def verify(x: Tensor = x, w: Tensor = weight, b: Tensor = bias, shape: Shape = shape) -> None:
                    _close(ours(x), conv2d(x, w, b, *shape.args), 1e-4)

                case = _case("sparse_conv2d", shape, batch, x, weight, bias, ours, verify, {})
                yield harness.Case(
                    case.op, f"{case.shape} {sparsity:.0%}", case.candidates, case.verify, case.operations,
                    extra={**case.extra, "panel": panel, "stored_share": 1 - sparsity},
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("int8", "sparse"))
    parser.add_argument("filter", nargs="?", default="", help="part of a shape's name, e.g. k3")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="torch.quantize_per_")  # deprecated, but what these peers need
    shapes = [shape for shape in SHAPES if arguments.filter in shape.name(1)]
    makers = {"int8": int8_cases, "sparse": sparse_cases}
    for name in (arguments.what,) if arguments.what else makers:
        with torch.inference_mode():
            cases = makers[name](shapes, arguments.batch)
            suffix = "".join(c if c.isalnum() else "_" for c in f" {arguments.filter}") if arguments.filter else ""
            harness.run(cases, f"conv_{name}{suffix}", arguments.rounds)


if __name__ == "__main__":
    main()
