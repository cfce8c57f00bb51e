"""Linear layers with square blocks of weights, and 2:4, against dense, unstructured and torch's block-sparse ones.

gops counts the dense product's operations ("effective"), real_gops those with stored weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as tF
from torch import Tensor

from bigmodel_ext import convert
from bigmodel_ext import functional as F
from bigmodel_ext.bench import limits, peers
from bigmodel_ext.bench.harness import Call, Case
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.bench.sparse import MAIN, close
from bigmodel_ext.formats import block_sparse, csr, two_four

MS = {"quick": (128,), "default": (1, 16, 128), "full": (1, 4, 16, 32, 64, 128)}
MATRICES = {"quick": (MAIN,), "default": (MAIN,), "full": (MAIN, (768, 3072))}  # N, K
BLOCKS = {  # size and sparsity
    "quick": ((32, 0.5), (32, 0.9)),
    "default": ((16, 0.5), (16, 0.9), (32, 0.5), (32, 0.7), (32, 0.8), (32, 0.9), (32, 0.95), (64, 0.5), (64, 0.9)),
    "full": tuple((size, s) for size in (16, 32, 64) for s in (0.5, 0.7, 0.8, 0.9, 0.95)),
}

Linear = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stored:
    """A dense weight and its compressed form: `run` is the op of x and values, `pack` takes a gradient to values."""

    op: str
    label: str
    weight: Tensor
    values: Tensor
    run: Linear
    pack: Callable[[Tensor], Tensor]
    size: int | None = None


def _blocks(n: int, k: int, size: int, sparsity: float) -> Stored:
    keep = torch.rand(n // size, k // size) >= sparsity
    weight = torch.where(keep.repeat_interleave(size, 0).repeat_interleave(size, 1), torch.randn(n, k), 0.0)
    values, crow, col = block_sparse.pack(weight, blocksize=size)
    mask = block_sparse.mask_of(crow, col, n, k, size)

    def run(x: Tensor, values: Tensor) -> Tensor:
        return F.block_sparse_linear(x, values, crow, col, out_features=n)

    def pack(gradient: Tensor) -> Tensor:
        return block_sparse.pack(gradient, mask, size)[0]

    return Stored("block_sparse_linear", f"b{size} {sparsity:.0%}", weight, values, run, pack, size)


def _two_four(n: int, k: int) -> Stored:
    weight = torch.randn(n, k)
    weight[~convert.two_four_mask(weight)] = 0.0
    values, index = two_four.pack(weight)
    mask = two_four.mask_of(index, n, k)

    def run(x: Tensor, values: Tensor) -> Tensor:
        return F.semi_sparse_linear(x, values, index, out_features=n)

    def pack(gradient: Tensor) -> Tensor:
        return two_four.pack(gradient, mask)[0]

    return Stored("semi_sparse_linear", "2:4", weight, values, run, pack)


def _unstructured(x: Tensor, stored: Stored) -> Call:
    """Our op for unstructured sparsity on the same weights."""
    n, panel = stored.weight.shape[0], csr.panel_for(stored.values.numel() / stored.weight.numel())
    values, crow, col, order = csr.sort_rows(*csr.pack(stored.weight, panel=panel), n)
    return lambda: F.sparse_linear(x, values, crow, col, out_features=n, panel=panel, order=order)


def _torch_bsr(x: Tensor, weight: Tensor, size: int) -> Call:
    """torch's own block-sparse product, verified."""
    run = partial(tF.linear, x, weight.to_sparse_bsr((size, size)))
    peers.check(run, tF.linear(x, weight), "fp32")
    return run


def _case(m: int, stored: Stored, selection: Selection) -> Case:
    (n, k), x = stored.weight.shape, torch.randn(m, stored.weight.shape[1])
    ours, real = partial(stored.run, x, stored.values), 2.0 * m * stored.values.numel()
    candidates: dict[str, Call] = {stored.op: ours}
    candidates |= peers.linear_peers(peers.FP32, selection, x, stored.weight, torch.zeros(n), "warm")
    if selection.wants("sparse_linear"):
        candidates["sparse_linear"] = _unstructured(x, stored)
    if stored.size is not None and selection.wants("torch BSR"):
        bsr = peers.tried("torch BSR", partial(_torch_bsr, x, stored.weight, stored.size))
        candidates |= {"torch BSR": bsr} if bsr else {}
    traffic = 4.0 * (stored.values.numel() + m * (k + n))
    return Case(
        stored.op, f"M={m} N={n} K={k} {stored.label}", candidates,
        lambda: close(ours(), tF.linear(x, stored.weight)), operations=2.0 * m * n * k, bytes=traffic,
        real_operations=real, limit=limits.linear("fp32", real, traffic, "warm"),
        dtypes={name: peers.LINEAR[name].dtype for name in candidates if name in peers.LINEAR},
        extra={"m": m, "n": n, "k": k, "dtype": "fp32"},
    )  # fmt: skip


def _training_case(stored: Stored) -> Case:
    m, (n, k) = 128, stored.weight.shape
    x, grad = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
    values, dense = stored.values.requires_grad_(), stored.weight.requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(stored.run(x, values), (x, values), grad)

    def theirs() -> tuple[Tensor, ...]:
        return torch.autograd.grad(tF.linear(x, dense), (x, dense), grad)

    def verify() -> None:
        (dx, dvalues), (dx_dense, dense_gradient) = ours(), theirs()
        close(dx, dx_dense)
        close(dvalues, stored.pack(dense_gradient))

    real = 6.0 * m * values.numel()
    return Case(
        f"{stored.op} fwd+bwd", f"M={m} N={n} K={k} {stored.label}", {stored.op: ours, "torch fp32": theirs}, verify,
        operations=6.0 * m * n * k, real_operations=real, limit=limits.linear("fp32", real, 0.0),
        dtypes={"torch fp32": "fp32"}, extra={"m": m, "n": n, "k": k, "dtype": "fp32"},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    warnings.filterwarnings("ignore", message="Sparse BSR tensor support is in beta")
    size = selection.size
    shapes = selection.linear_shapes(MS[size]) or [(m, n, k) for n, k in MATRICES[size] for m in MS[size]]
    with torch.inference_mode():
        for m, n, k in shapes:
            for blocksize, sparsity in BLOCKS[size]:
                if n % blocksize == 0 == k % blocksize:
                    yield _case(m, _blocks(n, k, blocksize, sparsity), selection)
            yield _case(m, _two_four(n, k), selection)
    if size != "quick" and not selection.shapes:
        yield _training_case(_blocks(*MAIN, 32, 0.5))
        yield _training_case(_blocks(*MAIN, 32, 0.9))
        yield _training_case(_two_four(*MAIN))
