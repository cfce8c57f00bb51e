"""Fused dropout against eager torch, torch.compile and a copy: plain dropout and the chain residual + dropout(gelu(x + bias)).

    python -m bench.bench_dropout [--threads 1] [--quick]

The copy moves as many bytes as the forward pass into a tensor it allocates, as every candidate does, so its row is our
share of the memory bandwidth that an allocating op can have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as TF
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from torch import Tensor

from bench.harness import Case, run

P = 0.1
ROWS, FEATURES = (64, 4096, 16384), (768, 1024, 4096)
QUICK = {(4096, 1024), (16384, 4096)}
SEED = 1234


def _plain(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return TF.dropout(x, P)


def _chain(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + TF.dropout(TF.gelu(x + bias), P)


def _ours_plain(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return F.fused_dropout(x, P)


def _ours_chain(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return F.fused_dropout(x, P, bias=bias, activation="gelu", residual=residual)


def _verify(x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Callable[[], None]:
    def verify() -> None:
        raw = torch.ops.bigmodel_ext
        rows = slice(0, 64)  # a counter depends on the index only, so the first rows stand for all
        args = (x[rows], bias, None if residual is None else residual[rows], torch.tensor(SEED), P, activation)
        for ours, reference in (
            (raw.fused_dropout(*args), _reference.fused_dropout(*args)),
            (
                raw.fused_dropout_backward(torch.ones_like(args[0]), args[0], bias, *args[3:]),
                _reference.fused_dropout_backward(torch.ones_like(args[0]), args[0], bias, *args[3:]),
            ),
        ):
            torch.testing.assert_close(ours, reference)

    return verify


def _with_backward(f: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], object]:
    used = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(f(*inputs), used, grad, allow_unused=True)


def cases(shapes: list[tuple[int, int]]) -> Iterator[Case]:
    for m, n in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            torch._dynamo.reset()
            x, residual, grad, bias = (torch.randn(s, dtype=dtype) for s in ((m, n), (m, n), (m, n), (n,)))
            half = torch.empty_like(residual[: m // 2])
            for name, ours, theirs in (("plain", _ours_plain, _plain), ("bias+gelu+residual", _ours_chain, _chain)):
                chain = name != "plain"
                verify = _verify(x, bias if chain else None, residual if chain else None, "gelu" if chain else "none")
                passes = 3 if chain else 2  # tensors read and written by the forward pass
                compiled = torch.compile(theirs, fullgraph=True)

                def copy(passes: int = passes) -> Tensor:
                    if passes == 3:  # half of another copy is one more pass
                        half.copy_(residual[: m // 2])
                    return x.clone()

                inputs = (x, bias, residual)

                def forward(f: Callable[..., Tensor], inputs: tuple[Tensor, ...] = inputs) -> Callable[[], object]:
                    def call() -> Tensor:
                        with torch.no_grad():
                            return f(*inputs)

                    return call

                label, size = f"{m}x{n} {str(dtype)[6:]}", x.numel() * x.element_size()
                extra = {"dtype": str(dtype)[6:], "pass": "forward"}
                yield Case(
                    f"dropout {name}", f"{label} fwd",
                    {"ours": forward(ours), "eager": forward(theirs), "inductor": forward(compiled), "memcpy": copy},
                    verify, bytes=passes * size, extra=extra,
                )  # fmt: skip
                leaves = tuple(t.clone().requires_grad_(chain or t is x) for t in inputs)
                # Forward as above; backward reads x and the gradient and writes dx (plus dbias, not counted).
                backward = {
                    key: _with_backward(f, leaves, grad)
                    for key, f in (("ours", ours), ("eager", theirs), ("inductor", compiled))
                }
                yield Case(
                    f"dropout {name}", f"{label} fwd+bwd", backward, verify,
                    bytes=(passes + 3) * size, extra={**extra, "pass": "forward+backward"},
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--shape", help="one shape, as 4096x1024")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shapes = [(m, n) for m in ROWS for n in FEATURES if not options.quick or (m, n) in QUICK]
    if options.shape:
        shapes = [tuple(map(int, options.shape.split("x")))]
    run(cases(shapes), "dropout", options.rounds)


if __name__ == "__main__":
    main()
