"""Sparse linear layers against dense and sparse ones: float32 unstructured, int8 in 1x4 blocks, and a training step.

gops counts the dense product's operations ("effective"), real_gops those with stored weights.
"""

from __future__ import annotations

from collections.abc import Iterator
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
TRAINING = {"quick": (), "default": (0.5, 0.9), "full": (0.5, 0.7, 0.8, 0.9, 0.95)}
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


def _unstructured(x: Tensor, weight: Tensor, bias: Tensor, panel: int) -> tuple[Call, int]:
    """The call, and how many weights are stored."""
    n = weight.shape[0]
    values, crow, col = csr.pack(weight, panel=panel)
    return lambda: F.sparse_linear(x, values, crow, col, bias, out_features=n, panel=panel), values.numel()


def _fp32_case(m: int, n: int, k: int, sparsity: float, cache: str, selection: Selection) -> Case:
    x, bias, panel = torch.randn(m, k), torch.randn(n), csr.panel_for(1 - sparsity)
    # Cold: enough copies for the smallest form of the weights that is compared, which is ours.
    copies = peers.copies(5 * (1 - sparsity) * n * k) if cache == "cold" else 1
    weights = [_masked(n, k, sparsity) for _ in range(copies)]
    ours, stored = _unstructured(x, weights[0], bias, panel)
    run = rotating([ours, *(_unstructured(x, w, bias, panel)[0] for w in weights[1:])]) if copies > 1 else ours
    found = peers.linear_peers(peers.FP32, selection, x, weights, bias)
    real, traffic = 2.0 * m * stored, 5.0 * stored + 4.0 * m * (k + n)
    return Case(
        "sparse_linear", f"M={m} N={n} K={k} {sparsity:.0%}", {"sparse_linear": run, **found},
        partial(_close_call, ours, partial(tF.linear, x, weights[0], bias)),
        operations=2.0 * m * n * k, bytes=traffic, real_operations=real,
        limit=limits.linear("fp32", real, traffic, cache), cache=cache,
        dtypes={name: peers.LINEAR[name].dtype for name in found},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": panel},
    )  # fmt: skip


def _block_weight(n: int, k: int, sparsity: float) -> Tensor:
    """int8 [N,K] with whole 1x4 blocks of zeros."""
    keep = torch.rand(n, -(-k // 4), 1) >= sparsity
    return torch.where(keep, torch.randint(-127, 128, (n, -(-k // 4), 4)), 0).flatten(1)[:, :k].to(torch.int8)


def _int8_case(m: int, n: int, k: int, sparsity: float, selection: Selection) -> Case:
    x, scale, bias, panel = torch.randn(m, k), torch.rand(n), torch.randn(n), csr.panel_for(1 - sparsity)
    weight = _block_weight(n, k, sparsity)
    values, crow, col, row_sum = block.pack(weight, panel)
    args = (x, values, crow, col, scale, row_sum, bias)
    dense, packed = weight * scale[:, None], int8.pack(weight)

    def verify() -> None:
        ours = F.int8_sparse_linear(*args, panel=panel)
        assert torch.equal(ours, _reference.int8_sparse_linear(*args, panel)), "differs from the reference"

    candidates: dict[str, Call] = {"int8_sparse_linear": lambda: F.int8_sparse_linear(*args, panel=panel)}
    if selection.wants("int8_linear"):
        candidates["int8_linear"] = lambda: F.int8_linear(x, packed, scale, bias)
    candidates |= peers.linear_peers(peers.INT8, selection, x, [dense], bias)
    real, traffic = 2.0 * m * values.numel(), 5.0 * col.numel() + 4.0 * m * (k + n)
    return Case(
        "int8_sparse_linear", f"M={m} N={n} K={k} 1x4 {sparsity:.0%}", candidates, verify,
        operations=2.0 * m * n * k, bytes=traffic, real_operations=real,
        limit=limits.linear("int8", real, traffic),
        dtypes={name: peers.LINEAR[name].dtype if name in peers.LINEAR else "int8" for name in candidates},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "int8", "panel": panel},
    )  # fmt: skip


def _training_case(m: int, n: int, k: int, sparsity: float) -> Case:
    dense, panel = _masked(n, k, sparsity), csr.panel_for(1 - sparsity)
    values, crow, col = csr.pack(dense, panel=panel)
    mask = dense != 0
    x, grad = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
    values.requires_grad_()
    dense.requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        y = F.sparse_linear(x, values, crow, col, out_features=n, panel=panel)
        return torch.autograd.grad(y, (x, values), grad)

    def theirs() -> tuple[Tensor, ...]:
        return torch.autograd.grad(tF.linear(x, dense), (x, dense), grad)

    def verify() -> None:
        (dx, dvalues), (dx_dense, dense_gradient) = ours(), theirs()
        close(dx, dx_dense)
        close(dvalues, csr.pack(dense_gradient, mask, panel)[0])

    real = 6.0 * m * values.numel()
    return Case(
        "sparse_linear fwd+bwd", f"M={m} N={n} K={k} {sparsity:.0%}", {"sparse_linear": ours, "torch fp32": theirs},
        verify, operations=6.0 * m * n * k, real_operations=real,
        limit=limits.linear("fp32", real, 0.0), dtypes={"torch fp32": "fp32"},
        extra={"m": m, "n": n, "k": k, "sparsity": sparsity, "dtype": "fp32", "panel": panel},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        for m, n, k, sparsity in _chosen(selection):
            yield _fp32_case(m, n, k, sparsity, "warm", selection)
            if m == 1 and n * k > COLD_BYTES and sparsity >= 0.5:
                yield _fp32_case(m, n, k, sparsity, "cold", selection)
        for m, n, k, sparsity in _chosen(selection):
            yield _int8_case(m, n, k, sparsity, selection)
    for sparsity in () if selection.shapes else TRAINING[selection.size]:
        yield _training_case(128, *MAIN, sparsity)
