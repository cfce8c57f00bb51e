"""Fused dropout against eager torch, torch.compile and a copy: plain, and residual + dropout(gelu(x + bias)).

The copy moves as many bytes as the forward pass into a tensor it allocates, as every candidate does, so its row is our
share of the memory bandwidth that an allocating op can have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as TF
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.bench import limits, peers
from bigmodel_ext.bench.harness import Call, Case
from bigmodel_ext.bench.selection import Selection

Function = Callable[..., Tensor]

P = 0.1
SHAPES = {
    "quick": ((64, 768), (4096, 1024)),
    "default": ((64, 768), (4096, 1024), (16384, 4096)),
    "full": tuple((rows, features) for rows in (64, 4096, 16384) for features in (768, 1024, 4096)),
}
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
        seed = torch.tensor(SEED)
        first, gradient = x[rows], torch.ones_like(x[rows])
        other = None if residual is None else residual[rows]
        torch.testing.assert_close(
            raw.fused_dropout(first, bias, other, seed, P, activation),
            _reference.fused_dropout(first, bias, other, seed, P, activation),
        )
        torch.testing.assert_close(
            raw.fused_dropout_backward(gradient, first, bias, seed, P, activation),
            _reference.fused_dropout_backward(gradient, first, bias, seed, P, activation),
        )

    return verify


def _check_peer(f: Function, inputs: tuple[Tensor, ...], chain: bool) -> None:
    """Raises Missing unless the peer drops about P of its elements and scales the others."""
    with torch.no_grad():
        x, bias, residual = inputs
        out = f(torch.ones_like(x), torch.zeros_like(bias), torch.zeros_like(residual)).float()
    kept = float(TF.gelu(torch.ones(())) if chain else 1.0) / (1 - P)
    dropped = out == 0
    wrong = float(torch.where(dropped, 0.0, out - kept).abs().max())
    rate = float(dropped.float().mean())
    if not (wrong < 0.02 and abs(rate - P) < 0.01):
        raise peers.Missing(f"drops {rate:.3f} of the elements for p = {P} and is off by {wrong:.3g}")


def _forward(f: Function, inputs: tuple[Tensor, ...]) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return f(*inputs)

    return call


def _with_backward(f: Function, inputs: tuple[Tensor, ...], grad: Tensor) -> Call:
    used = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(f(*inputs), used, grad)


def _copy(x: Tensor, passes: int) -> Call:
    """As many bytes as `passes` tensors like x: one read, one written, and half of another copy for the third."""
    more = x[: x.shape[0] // 2] if passes == 3 else x[:0]
    space = torch.empty_like(more)
    return lambda: (space.copy_(more), x.clone())


def _functions(selection: Selection, inputs: tuple[Tensor, ...], chain: bool) -> dict[str, Function]:
    """Ours and the peers, verified."""
    theirs = _chain if chain else _plain
    found: dict[str, Function] = {"fused_dropout": _ours_chain if chain else _ours_plain}

    def build(name: str) -> Function:
        function: Function = torch.compile(theirs, fullgraph=True) if name == "inductor" else theirs
        _check_peer(function, inputs, chain)
        return function

    for name in filter(selection.wants, ("torch eager", "inductor")):
        function = peers.tried(name, partial(build, name))  # inductor needs a compiler, and may fail in any way
        if function:
            found[name] = function
    return found


def _pair(m: int, n: int, dtype: torch.dtype, chain: bool, selection: Selection) -> Iterator[Case]:
    """Forward, and forward + backward, of one shape."""
    torch.compiler.reset()
    x, residual, grad, bias = (torch.randn(s, dtype=dtype) for s in ((m, n), (m, n), (m, n), (n,)))
    inputs = (x, bias, residual)
    functions = _functions(selection, inputs, chain)
    verify = _verify(x, bias if chain else None, residual if chain else None, "gelu" if chain else "none")
    op = "dropout bias+gelu+residual" if chain else "dropout plain"
    label, size = f"{m}x{n} {str(dtype)[6:]}", x.numel() * x.element_size()
    passes = 3 if chain else 2  # tensors read and written
    forward = {name: _forward(f, inputs) for name, f in functions.items()}
    if selection.wants("memcpy"):
        forward["memcpy"] = _copy(x, passes)
    facts = {"m": m, "n": n, "dtype": str(dtype)[6:]}

    def limit(nbytes: int) -> limits.Limit:
        bandwidth = limits.copy_bandwidth(nbytes)
        return limits.Limit(f"copying {bandwidth / 1e9:.0f} GB/s", nbytes / bandwidth)

    yield Case(op, f"{label} fwd", forward, verify, bytes=passes * size, limit=limit(passes * size), extra=facts)
    leaves = tuple(t.clone().requires_grad_(chain or t is x) for t in inputs)
    # Backward reads x and the gradient and writes dx; the bias's gradient reads dx again and is not counted.
    both = {name: _with_backward(f, leaves, grad) for name, f in functions.items()}
    traffic = (passes + 3) * size
    yield Case(op, f"{label} fwd+bwd", both, verify, bytes=traffic, limit=limit(traffic), extra=facts)


def cases(selection: Selection) -> Iterator[Case]:
    shapes = [shape for shape in selection.shapes if len(shape) == 2] if selection.shapes else SHAPES[selection.size]
    for m, n in shapes:
        both = selection.size == "full" or (selection.size == "default" and m * n < 1 << 24)  # the largest take minutes
        for dtype in (torch.float32, torch.bfloat16) if both else (torch.float32,):
            for chain in (False, True):
                yield from _pair(m, n, dtype, chain, selection)
