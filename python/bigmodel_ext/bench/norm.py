"""Fused dropout + residual + normalisation against eager torch, torch.compile and a copy of as many bytes.

    h = residual + dropout(x),  y = LayerNorm(h) or RMSNorm(h), both results wanted

Forward reads x and residual and writes h and y; backward reads both gradients, h and x (for the activation's slope) and
writes the gradients of x and of the residual. The copy allocates its outputs, as every candidate does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as TF
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.bench import peers
from bigmodel_ext.bench.harness import Case
from bigmodel_ext.bench.selection import Selection

P, EPS, SEED = 0.1, 1e-5, 1234
ROWS, FEATURES = (64, 4096), (768, 1024, 4096)
QUICK = ((64, 768), (4096, 1024))


def _ours(norm: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(x: Tensor, residual: Tensor, weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor]:
        return F.fused_dropout_norm(
            x, P, residual=residual, weight=weight, norm_bias=norm_bias if norm == "layer" else None, norm=norm, eps=EPS
        )

    return call


def _torchs(norm: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def layer(x: Tensor, residual: Tensor, weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + TF.dropout(x, P)
        return TF.layer_norm(h, h.shape[-1:], weight, norm_bias, EPS), h

    def rms(x: Tensor, residual: Tensor, weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + TF.dropout(x, P)
        return TF.rms_norm(h, h.shape[-1:], weight, EPS), h

    return layer if norm == "layer" else rms


def _compiled(norm: str, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
    compiled = torch.compile(_torchs(norm), fullgraph=True)
    compiled(*inputs)  # inductor needs a compiler, and may fail in any way
    return compiled


def _verify(x: Tensor, residual: Tensor, weight: Tensor, norm_bias: Tensor, norm: str) -> Callable[[], None]:
    def verify() -> None:
        rows, raw = slice(0, 64), torch.ops.bigmodel_ext
        seed, bias = torch.tensor(SEED), norm_bias if norm == "layer" else None
        args = (x[rows], None, residual[rows], seed, weight, bias, P, "none", norm, EPS)
        ours, reference = raw.fused_dropout_norm(*args), _reference.fused_dropout_norm(*args)
        torch.testing.assert_close(ours, reference)
        back = (x[rows], residual[rows], *reference[1:], x[rows], None, seed, weight, P, "none", norm)
        for a, b in zip(
            raw.fused_dropout_norm_backward(*back), _reference.fused_dropout_norm_backward(*back), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1.6e-2 if x.dtype == torch.bfloat16 else 1e-4, atol=1e-2)

    return verify


def _forward(f: Callable[..., object], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return f(*inputs)

    return call


def _pair(m: int, n: int, dtype: torch.dtype, norm: str, selection: Selection) -> Iterator[Case]:
    torch._dynamo.reset()
    x, residual, gy, gh = (torch.randn(m, n, dtype=dtype) for _ in range(4))
    weight, norm_bias = torch.rand(n, dtype=dtype) + 0.5, torch.randn(n, dtype=dtype)
    inputs = (x, residual, weight, norm_bias)
    functions = {"ours": _ours(norm), "torch eager": _torchs(norm)}
    if selection.wants("inductor"):
        inductor = peers.tried("inductor", partial(_compiled, norm, inputs))
        functions |= {"inductor": inductor} if inductor else {}
    verify, op = _verify(*inputs, norm), f"dropout+residual+{norm}norm"
    label, size = f"{m}x{n} {str(dtype)[6:]}", x.numel() * x.element_size()
    forward = {name: _forward(f, inputs) for name, f in functions.items()}
    forward["memcpy"] = lambda: (x.clone(), residual.clone())
    extra: dict[str, object] = {"dtype": str(dtype)[6:], "pass": "forward"}
    yield Case(op, f"{label} fwd", forward, verify, bytes=4 * size, extra=extra)
    leaves = tuple(t.clone().requires_grad_(norm == "layer" or t is not norm_bias) for t in inputs)
    used = [t for t in leaves if t.requires_grad]

    def backward(f: Callable[..., tuple[Tensor, ...]]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(f(*leaves), used, (gy, gh))

    both = {name: backward(f) for name, f in functions.items()}
    extra = {**extra, "pass": "forward+backward"}
    yield Case(op, f"{label} fwd+bwd", both, verify, bytes=10 * size, extra=extra)


def cases(selection: Selection) -> Iterator[Case]:
    shapes = tuple((m, n) for m in ROWS for n in FEATURES) if selection.size == "full" else QUICK
    for m, n in [(s[0], s[1]) for s in selection.shapes] or shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for norm in ("layer", "rms"):
                for case in _pair(m, n, dtype, norm, selection):
                    wanted = {k: c for k, c in case.candidates.items() if k == "ours" or selection.wants(k)}
                    yield replace(case, candidates=wanted)
