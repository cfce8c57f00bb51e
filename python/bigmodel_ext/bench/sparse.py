"""Sparse linear layers against dense and sparse ones: float32 unstructured, int8 in 1x4 blocks, training, packing.

gops counts the dense product's operations ("effective"), real_gops those with stored weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as tF
from torch import Tensor

from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.bench import limits, peers, shapes
from bigmodel_ext.bench.harness import Call, Case, rotating
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats import block, csr, int8
from bigmodel_ext.nn import SparseLinear

MAIN = (4096, 4096)
Chosen = tuple[tuple[tuple[int, int, int], tuple[float, ...]], ...]
QUICK: Chosen = (((128, 3072, 768), (0.5, 0.9)), ((1, *MAIN), (0.9,)))
DEFAULT: Chosen = (
    ((128, *MAIN), shapes.SPARSITIES),
    ((128, 768, 3072), (0.5, 0.7, 0.8, 0.9, 0.95)),
    ((128, 384, 1536), (0.5, 0.9)),
    ((16, *MAIN), (0.5, 0.9)),
    ((1, *MAIN), (0.5, 0.7, 0.9)),
    ((1, 3072, 768), (0.7, 0.9)),
)
TRAINING = {"quick": (), "default": (0.5, 0.7, 0.9), "full": (0.5, 0.7, 0.8, 0.9, 0.95)}
PACKED: dict[str, tuple[tuple[int, int], ...]] = {
    size: ((3072, 768), *(() if size == "quick" else (MAIN,))) for size in TRAINING
}
COLD_BYTES = 2e6


def _chosen(selection: Selection) -> Iterator[tuple[int, int, int, float]]:
    found: Chosen
    if selection.shapes:
        found = tuple((shape, shapes.SPARSITIES) for shape in selection.linear_shapes(shapes.MS))
    elif selection.size == "full":
        found = tuple((shape, shapes.SPARSITIES) for shape in shapes.every(shapes.MS, shapes.MODELS))
    else:
        found = QUICK if selection.size == "quick" else DEFAULT
    return ((*shape, sparsity) for shape, sparsities in found for sparsity in sparsities)


def close(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def _close_call(ours: Call, wanted: Call) -> None:
    close(torch.as_tensor(ours()), torch.as_tensor(wanted()))


def _masked(n: int, k: int, sparsity: float) -> Tensor:
    return torch.where(torch.rand(n, k) >= sparsity, torch.randn(n, k), 0.0)


def _cold(make: Callable[..., Call], packed: Sequence[Tensor]) -> Call:
    """Calls that take turns over so many copies of the packed weights that none is still in a cache."""
    size = sum(tensor.nbytes for tensor in packed)
    return rotating([make(*(tensor.clone() for tensor in packed)) for _ in range(peers.copies(size))])


def _fp32_case(m: int, n: int, k: int, sparsity: float, cache: str, selection: Selection) -> Case:
    x, weight, bias = torch.randn(m, k), _masked(n, k, sparsity), torch.randn(n)
    panel = csr.panel_for(1 - sparsity)
    packed = csr.sort_rows(*csr.pack(weight, panel=panel), n)

    def make(values: Tensor, crow: Tensor, col: Tensor, order: Tensor) -> Call:
        return lambda: F.sparse_linear(x, values, crow, col, bias, out_features=n, panel=panel, order=order)

    ours = make(*packed)
    run = _cold(make, packed) if cache == "cold" else ours
    stored = packed[0].numel()
    found = peers.linear_peers(peers.FP32, selection, x, weight, bias, cache)
    real, traffic = 2.0 * m * stored, 5.0 * stored + 4.0 * m * (k + n)
    return Case(
        "sparse_linear", f"M={m} N={n} K={k} {sparsity:.0%}", {"sparse_linear": run, **found},
        partial(_close_call, ours, partial(tF.linear, x, weight, bias)),
        operations=2.0 * m * n * k, bytes=traffic, real_operations=real,
        limit=limits.linear("fp32", real, traffic, cache), cache=cache,
        dtypes={name: peers.LINEAR[name].dtype for name in found},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": panel},
    )  # fmt: skip


def _block_weight(n: int, k: int, sparsity: float) -> Tensor:
    """int8 [N,K] with whole 1x4 blocks of zeros."""
    keep = torch.rand(n, -(-k // 4), 1) >= sparsity
    return torch.where(keep, torch.randint(-127, 128, (n, -(-k // 4), 4)), 0).flatten(1)[:, :k].to(torch.int8)


def _int8_case(m: int, n: int, k: int, sparsity: float, cache: str, selection: Selection) -> Case:
    x, scale, bias, panel = torch.randn(m, k), torch.rand(n), torch.randn(n), csr.panel_for(1 - sparsity)
    weight = _block_weight(n, k, sparsity)
    blocks, rows, columns, row_sum = block.pack(weight, panel)
    packed = csr.sort_rows(blocks, rows, columns, n)
    values, _, col, _ = packed

    def make(values: Tensor, crow: Tensor, col: Tensor, order: Tensor) -> Call:
        return lambda: F.int8_sparse_linear(x, values, crow, col, scale, row_sum, bias, panel=panel, order=order)

    def make_dense(weight: Tensor) -> Call:
        return lambda: F.int8_linear(x, weight, scale, bias)

    ours = make(*packed)

    def verify() -> None:
        expected = _reference.int8_sparse_linear(x, *packed[:3], scale, row_sum, bias, panel, packed[3])
        assert torch.equal(torch.as_tensor(ours()), expected), "int8_sparse_linear differs from the reference"

    candidates = {"int8_sparse_linear": _cold(make, packed) if cache == "cold" else ours}
    if selection.wants("int8_linear"):
        dense = int8.pack(weight)
        candidates["int8_linear"] = _cold(make_dense, (dense,)) if cache == "cold" else make_dense(dense)
    candidates |= peers.linear_peers(peers.INT8, selection, x, weight * scale[:, None], bias, cache)
    real, traffic = 2.0 * m * values.numel(), 5.0 * col.numel() + 4.0 * m * (k + n)
    return Case(
        "int8_sparse_linear", f"M={m} N={n} K={k} 1x4 {sparsity:.0%}", candidates, verify,
        operations=2.0 * m * n * k, bytes=traffic, real_operations=real,
        limit=limits.linear("int8", real, traffic, cache), cache=cache,
        dtypes={name: peers.LINEAR[name].dtype if name in peers.LINEAR else "int8" for name in candidates},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "int8", "panel": panel},
    )  # fmt: skip


def _training_case(m: int, n: int, k: int, sparsity: float) -> Case:
    dense, panel = _masked(n, k, sparsity), csr.panel_for(1 - sparsity)
    mask = dense != 0
    values, crow, col, order = csr.sort_rows(*csr.pack(dense, panel=panel), n)
    x, grad = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
    values.requires_grad_()
    dense.requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        y = F.sparse_linear(x, values, crow, col, out_features=n, panel=panel, order=order)
        return torch.autograd.grad(y, (x, values), grad)

    def theirs() -> tuple[Tensor, ...]:
        return torch.autograd.grad(tF.linear(x, dense), (x, dense), grad)

    def verify() -> None:
        (dx, dvalues), (dx_dense, dense_gradient) = ours(), theirs()
        close(dx, dx_dense)
        close(csr.unsort_rows(dvalues, crow, col, n, order)[0], csr.pack(dense_gradient, mask, panel)[0])

    real = 6.0 * m * values.numel()
    return Case(
        "sparse_linear fwd+bwd", f"M={m} N={n} K={k} {sparsity:.0%}", {"sparse_linear": ours, "torch fp32": theirs},
        verify, operations=6.0 * m * n * k, real_operations=real,
        limit=limits.linear("fp32", real, 0.0), dtypes={"torch fp32": "fp32"},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": panel},
    )  # fmt: skip


def _pack_case(n: int, k: int, sparsity: float) -> Case:
    """Packing, and transposing for the backward pass, each beside a forward pass of 128 rows: the ratio is how many of
    these passes it costs, upside down."""
    weight, panel = _masked(n, k, sparsity), csr.panel_for(1 - sparsity)
    packed = csr.pack_sorted(weight, panel=panel)
    values, crow, col, order = packed
    x = torch.randn(128, k)

    def forward() -> Tensor:
        return F.sparse_linear(x, values, crow, col, out_features=n, panel=panel, order=order)

    def verify() -> None:
        wanted = _reference.pack_panel_csr(weight, None, panel, True)
        same = all(torch.equal(ours, theirs) for ours, theirs in zip(packed, wanted, strict=True))
        assert same, "pack_panel_csr differs from the reference"

    traffic = 8.0 * n * k + 5.0 * values.numel()
    return Case(
        "pack_panel_csr", f"N={n} K={k} {sparsity:.0%}",
        {
            "pack_panel_csr": lambda: csr.pack_sorted(weight, panel=panel),
            "forward pass, M=128": forward,
            "reference": lambda: _reference.pack_panel_csr(weight, None, panel, True),
        },
        verify, bytes=traffic, limit=limits.linear("fp32", 0.0, traffic, "cold"),
        extra={"n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": panel},
    )  # fmt: skip


def _step_case(m: int, n: int, k: int, sparsity: float) -> Case:
    """A whole step of fine-tuning: forward, backward (of the input too) and Adam."""
    dense = torch.nn.Linear(k, n)
    with torch.no_grad():
        dense.weight.copy_(_masked(n, k, sparsity))
    sparse = SparseLinear.from_dense(dense)
    sparse.bias = torch.nn.Parameter(dense.bias.detach().clone())  # not shared: each is trained by its own
    x, grad = torch.randn(m, k, requires_grad=True), torch.randn(m, n)

    def verify() -> None:
        with torch.no_grad():
            close(sparse(x), dense(x))

    def step(layer: torch.nn.Linear) -> Call:
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-6, fused=True)

        def run() -> None:
            x.grad = None
            optimizer.zero_grad(set_to_none=True)
            layer(x).backward(grad)
            optimizer.step()

        return run

    real = 6.0 * m * sparse.nnz
    return Case(
        "SparseLinear training step", f"M={m} N={n} K={k} {sparsity:.0%}",
        {"sparse_linear": step(sparse), "torch fp32": step(dense)}, verify,
        operations=6.0 * m * n * k, real_operations=real, limit=limits.linear("fp32", real, 0.0),
        dtypes={"torch fp32": "fp32"},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": sparse.panel},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        for make in (_fp32_case, _int8_case):
            for m, n, k, sparsity in _chosen(selection):
                yield make(m, n, k, sparsity, "warm", selection)
                if m == 1 and n * k > COLD_BYTES and sparsity >= 0.5:
                    yield make(m, n, k, sparsity, "cold", selection)
    for sparsity in () if selection.shapes else TRAINING[selection.size]:
        yield _training_case(128, *MAIN, sparsity)
        yield _step_case(128, *MAIN, sparsity)
    for shape in () if selection.shapes else PACKED[selection.size]:
        for sparsity in (0.5, 0.9):
            yield _pack_case(shape[0], shape[1], sparsity)
