"""What is timed: linear layers of KERNELS.md's shapes and dropout, against the best that torch has. Results are checked
first, in the same process. Each function yields rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gpu
from gpu.timing import Call, compare, copies, take_turns

LLAMA = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # N, K of Llama-3-8B
SQUARE = (4096, 4096)
ROWS_OF_DROPOUT = ((64, 4096), (4096, 768), (4096, 4096), (16384, 1024))
GATES = (0.05, 0.02)  # a relative error (root of the mean square) over it is a mistake: of int8 activations, of others
Row = dict[str, Any]


def _error(ours: Any, truth: Any) -> float:
    return float((ours.float() - truth).norm() / truth.norm().clamp_min(1e-30))


def _rows(name: str, shape: str, candidates: dict[str, list[Call]], moved: float, operations: float) -> Iterator[Row]:
    for row in compare(take_turns(candidates)):
        ours = row["ours_us"] * 1e-6
        yield {"op": name, "shape": shape, "dtype": "bfloat16", **row,
               "gbps": round(moved / ours / 1e9, 1), "tops": round(operations / ours / 1e12, 2)}  # fmt: skip


def _weights(n: int, k: int, prune: Callable[[Any], Any] | None) -> list[Any]:
    import torch

    made = []
    for _ in range(copies(2 * n * k)):
        linear = torch.nn.Linear(k, n, bias=False, device=gpu.DEVICE, dtype=torch.bfloat16)
        if prune is not None:
            with torch.no_grad():
                linear.weight.mul_(prune(linear.weight))
        made.append(linear)
    return made


def _linear(name: str, m: int, n: int, k: int, make: Callable[[Any], Any], peers: Callable[..., dict[str, list[Call]]],
            gate: float, prune: Callable[[Any], Any] | None = None) -> Iterator[Row]:  # fmt: skip
    """`make` compresses an nn.Linear; `peers` gives further candidates for (x, linears, layers)."""
    import torch

    with torch.inference_mode():
        linears = _weights(n, k, prune)
        layers, x = [make(linear) for linear in linears], torch.randn(m, k, device=gpu.DEVICE, dtype=torch.bfloat16)
        error = _error(layers[0](x), x.float() @ layers[0].weight.float().T)
        if not error < gate:
            raise AssertionError(f"{name} {m}x{n}x{k}: relative error {error:.4f}, at most {gate} is allowed")
        candidates: dict[str, list[Call]] = {
            "ours": [lambda layer=layer: layer(x) for layer in layers],
            "torch bf16": [lambda linear=linear: linear(x) for linear in linears],
        }
        candidates.update(peers(x, linears, layers))
        stored = sum(t.numel() * t.element_size() for t in (*layers[0].buffers(), *layers[0].parameters()))
        yield from _rows(name, f"{m}x{n}x{k}", candidates, stored + 2 * m * (n + k), 2.0 * m * n * k)


def _none(*_: Any) -> dict[str, list[Call]]:
    return {}


def _int_mm(x: Any, linears: list[Any], layers: list[Any]) -> dict[str, list[Call]]:
    """torch's int8 product alone, on operands that are already int8, and with quantization and a compiled epilogue. It
    refuses fewer than 17 rows."""
    import torch

    if x.shape[0] <= 16:
        return {}
    weights = [layer.weight_q.T for layer in layers]
    q = torch.randint(-127, 128, x.shape, dtype=torch.int8, device=gpu.DEVICE)

    @torch.compile
    def whole(x: Any, weight: Any, scale: Any) -> Any:
        wide = x.float()
        most = wide.abs().amax(1, keepdim=True)
        q = (wide * (127.0 / most)).round().to(torch.int8)
        return (torch._int_mm(q, weight).float() * (most / 127.0) * scale).to(x.dtype)

    scales = [layer.weight_scale for layer in layers]
    return {
        "_int_mm alone": [lambda w=w: torch._int_mm(q, w) for w in weights],
        "_int_mm + compiled epilogue": [
            lambda w=w, s=s: whole(x, w, s) for w, s in zip(weights, scales, strict=True)
        ],
    }  # fmt: skip


def _cusparselt(x: Any, linears: list[Any], layers: list[Any]) -> dict[str, list[Call]]:
    import torch
    import torch.nn.functional as TF

    if not torch.backends.cusparselt.is_available():
        return {}
    sparse = [torch.sparse.to_sparse_semi_structured(linear.weight.detach().contiguous()) for linear in linears]
    return {"cuSPARSELt bf16": [lambda w=w: TF.linear(x, w) for w in sparse]}


def _cusparselt_int8(x: Any, linears: list[Any], layers: list[Any]) -> dict[str, list[Call]]:
    """cuSPARSELt's int8 product alone, on operands that are already int8."""
    import torch

    if not torch.backends.cusparselt.is_available() or x.shape[0] % 16:
        return {}
    compressed = [torch._cslt_compress(layer.weight_q.contiguous()) for layer in layers]
    q = torch.randint(-127, 128, x.shape, dtype=torch.int8, device=gpu.DEVICE)
    return {
        "cuSPARSELt int8 alone": [
            lambda w=w: torch._cslt_sparse_mm(w, q.T, out_dtype=torch.int32) for w in compressed
        ],
    }  # fmt: skip


def int8_linear() -> Iterator[Row]:
    import bigmodel_ext as bm

    for n, k in LLAMA[1:2] + LLAMA[3:]:
        for m in (1, 16, 128, 512, 2048):
            yield from _linear("int8_linear", m, n, k, bm.nn.Int8Linear.from_float, _int_mm, GATES[0])


def small_batch() -> Iterator[Row]:
    """Weight-only int8 and binary codes."""
    import bigmodel_ext as bm
    import torch

    def coded(linear: Any) -> Any:
        layer = bm.nn.BinaryCodedLinear(linear.in_features, linear.out_features, False, gpu.DEVICE, torch.bfloat16)
        layer.packed.random_()
        layer.scales.normal_(0.0, 0.02)
        return layer

    for n, k in LLAMA[1:]:
        for m in (1, 8):
            weight_only = bm.nn.Int8WeightOnlyLinear.from_float
            yield from _linear("int8_weight_only_linear", m, n, k, weight_only, _none, GATES[1])
            yield from _linear("binary_coded_linear", m, n, k, coded, _none, GATES[0])


def sparse_linear() -> Iterator[Row]:
    import bigmodel_ext as bm
    import torch

    def two_four(weight: Any) -> Any:
        kept = weight.abs().view(-1, 4).topk(2, dim=1).indices
        return torch.zeros_like(weight).view(-1, 4).scatter_(1, kept, 1).view_as(weight)

    def unstructured(density: float) -> Callable[[Any], Any]:
        return lambda weight: (torch.rand_like(weight) < density).to(weight.dtype)

    for n, k in LLAMA[1:2] + LLAMA[3:]:
        for m in (1, 128, 2048):
            yield from _linear("semi_sparse_linear", m, n, k, bm.nn.SemiSparseLinear.from_dense, _cusparselt, GATES[1],
                               two_four)  # fmt: skip
    for density in (0.5, 0.1):
        for m in (1, 16):
            yield from _linear(f"sparse_linear {1 - density:.0%}", m, *SQUARE, bm.nn.SparseLinear.from_dense, _none,
                               GATES[1], unstructured(density))  # fmt: skip
    for m in (16, 2048):

        def blocks(weight: Any) -> Any:
            kept = (torch.rand(weight.shape[0] // 32, weight.shape[1] // 32, device=gpu.DEVICE) < 0.2).to(weight.dtype)
            return kept.repeat_interleave(32, 0).repeat_interleave(32, 1)

        make = lambda linear: bm.nn.BlockSparseLinear.from_dense(linear, blocksize=32)  # noqa: E731
        yield from _linear("block_sparse_linear 32 80%", m, *SQUARE, make, _none, GATES[1], blocks)
    int8 = bm.nn.Int8SemiSparseLinear.from_dense
    for n, k in LLAMA[1:2] + LLAMA[3:]:
        for m in (1, 128, 2048):
            yield from _linear("int8_semi_sparse_linear", m, n, k, int8, _cusparselt_int8, GATES[0], two_four)


def dropout() -> Iterator[Row]:
    """The chain bias + GELU + dropout + residual, alone and before a norm, forward; `copy` moves as many bytes."""
    import torch
    import torch.nn.functional as TF
    from bigmodel_ext import functional as F

    def chain(x: Any, bias: Any, residual: Any) -> Any:
        return residual + TF.dropout(TF.gelu(x + bias), 0.1)

    def normed(x: Any, bias: Any, residual: Any, weight: Any) -> Any:
        h = chain(x, bias, residual)
        return TF.layer_norm(h, h.shape[-1:], weight), h

    compiled, compiled_norm = torch.compile(chain), torch.compile(normed)
    for m, n in ROWS_OF_DROPOUT:
        x, r, _out, _out2 = (torch.randn(m, n, device=gpu.DEVICE, dtype=torch.bfloat16) for _ in range(4))
        b, w = (torch.randn(n, device=gpu.DEVICE, dtype=torch.bfloat16) for _ in range(2))
        both, size = torch.cat([x, r]), x.numel() * 2
        half, whole = torch.empty_like(both)[: 3 * m // 2], torch.empty_like(both)
        seed = torch.tensor(7, device=gpu.DEVICE)
        ours = lambda: F.fused_dropout(x, 0.1, bias=b, activation="gelu", residual=r, seed=seed)  # noqa: B023, E731
        fused = lambda: F.fused_dropout_norm(x, 0.1, True, b, "gelu", r, w, seed=seed)  # noqa: B023, E731
        cases = {
            "fused_dropout chain": (3, {
                "ours": ours, "eager": lambda: chain(x, b, r), "inductor": lambda: compiled(x, b, r),  # noqa: B023
                "copy": lambda: half.copy_(both[: 3 * m // 2])}),  # noqa: B023
            "fused_dropout_norm chain": (4, {
                "ours": fused, "eager": lambda: normed(x, b, r, w),  # noqa: B023
                "inductor": lambda: compiled_norm(x, b, r, w), "copy": lambda: whole.copy_(both)}),  # noqa: B023
        }  # fmt: skip
        with torch.inference_mode():
            for name, (times, calls) in cases.items():
                yield from _rows(name, f"{m}x{n}", {k: [c] for k, c in calls.items()}, times * size, 0.0)


SUITES: dict[str, Callable[[], Iterator[Row]]] = {
    "int8": int8_linear, "small": small_batch, "sparse": sparse_linear, "dropout": dropout,
}  # fmt: skip
