"""Fused dropout against eager torch, torch.compile and a copy: plain, and residual + dropout(gelu(x + bias)).

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

Function = Callable[..., Tensor]

P = 0.1
ROWS, FEATURES = (64, 4096, 16384), (768, 1024, 4096)
QUICK = {(64, 768), (4096, 1024)}  # larger ones measure the kernel's page faults: minutes
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


def _forward(f: Function, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def call() -> Tensor:
        with torch.no_grad():
            return f(*inputs)

    return call


def _with_backward(f: Function, inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], object]:
    used = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(f(*inputs), used, grad)


def _copy(x: Tensor, passes: int) -> Callable[[], object]:
    """As many bytes as `passes` tensors like x: one read, one written, and half of another copy for the third."""
    more = x[: x.shape[0] // 2] if passes == 3 else x[:0]
    space = torch.empty_like(more)
    return lambda: (space.copy_(more), x.clone())


def _pair(m: int, n: int, dtype: torch.dtype, chain: bool) -> Iterator[Case]:
    """Forward, and forward + backward, of one shape."""
    torch._dynamo.reset()
    x, residual, grad, bias = (torch.randn(s, dtype=dtype) for s in ((m, n), (m, n), (m, n), (n,)))
    ours, theirs = (_ours_chain, _chain) if chain else (_ours_plain, _plain)
    compiled = torch.compile(theirs, fullgraph=True)
    functions = {"ours": ours, "eager": theirs, "inductor": compiled}
    verify = _verify(x, bias if chain else None, residual if chain else None, "gelu" if chain else "none")
    op = "dropout bias+gelu+residual" if chain else "dropout plain"
    label, size = f"{m}x{n} {str(dtype)[6:]}", x.numel() * x.element_size()
    passes = 3 if chain else 2  # tensors read and written
    inputs = (x, bias, residual)
    forward = {name: _forward(f, inputs) for name, f in functions.items()} | {"memcpy": _copy(x, passes)}
    extra = {"dtype": str(dtype)[6:], "pass": "forward"}
    yield Case(op, f"{label} fwd", forward, verify, bytes=passes * size, extra=extra)
    leaves = tuple(t.clone().requires_grad_(chain or t is x) for t in inputs)
    # Backward reads x and the gradient and writes dx; the bias's gradient reads dx again and is not counted.
    both = {name: _with_backward(f, leaves, grad) for name, f in functions.items()}
    extra = {**extra, "pass": "forward+backward"}
    yield Case(op, f"{label} fwd+bwd", both, verify, bytes=(passes + 3) * size, extra=extra)


def cases(shapes: list[tuple[int, int]]) -> Iterator[Case]:
    for m, n in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for chain in (False, True):
                yield from _pair(m, n, dtype, chain)


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
