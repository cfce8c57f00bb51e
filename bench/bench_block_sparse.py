"""Weights in square blocks, and 2:4, against dense and sparse peers on one thread: `python -m bench.bench_block_sparse
[blocks] [semi] [training] [--quick]`.

GOPS counts the dense product's operations ("effective"); the column stored_operations counts those with stored weights.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as tF
from bigmodel_ext import convert
from bigmodel_ext import functional as F
from bigmodel_ext.formats import block_sparse, csr, two_four

from bench.harness import Case, run

ROUNDS = 7
MATRICES = ((4096, 4096), (768, 3072))  # N, K
ROWS = (1, 16, 128)
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
SIZES = (16, 32, 64)
QUICK = {"rows": (128,), "sparsities": (0.5, 0.9), "sizes": (32,)}

Calls = dict[str, Callable[[], torch.Tensor]]


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def onednn(x: torch.Tensor, weight: torch.Tensor) -> Calls:
    """Dense, with weights packed beforehand: the fastest dense float32 here, where this torch has it."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        call = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")  # noqa: E731
        call()
    except (AttributeError, RuntimeError):
        return {}
    return {"oneDNN packed": call}


def torch_bsr(x: torch.Tensor, weight: torch.Tensor, size: int) -> Calls:
    """torch's own product with block-CSR (MKL's), where it runs."""
    sparse = weight.to_sparse_bsr((size, size))
    call = lambda: tF.linear(x, sparse)  # noqa: E731
    try:
        call()
    except (RuntimeError, NotImplementedError):
        return {}
    return {"torch BSR": call}


def unstructured(x: torch.Tensor, weight: torch.Tensor) -> Calls:
    panel = csr.panel_for(int(weight.count_nonzero()) / weight.numel())
    packed = csr.pack(weight, panel=panel)
    return {"sparse_linear": lambda: F.sparse_linear(x, *packed, out_features=weight.shape[0], panel=panel)}


def dense(x: torch.Tensor, weight: torch.Tensor) -> Calls:
    x16, w16 = x.bfloat16(), weight.bfloat16()
    return {
        "F.linear": lambda: tF.linear(x, weight),
        "F.linear bf16": lambda: tF.linear(x16, w16),
        **onednn(x, weight),
    }


def block_weight(n: int, k: int, sparsity: float, size: int) -> torch.Tensor:
    keep = torch.rand(n // size, k // size) >= sparsity
    return torch.where(keep.repeat_interleave(size, 0).repeat_interleave(size, 1), torch.randn(n, k), 0.0)


def case(op: str, shape: str, ours: Callable[[], torch.Tensor], peers: Calls, stored: torch.Tensor, m: int) -> Case:
    weights, values = peers["weights"](), stored.numel()
    del peers["weights"]
    return Case(
        op, shape, {op: ours, **peers}, lambda: close(ours(), peers["F.linear"]()),
        operations=2 * m * weights.numel(), bytes=stored.numel() * stored.element_size() if m == 1 else 0,
        extra={"stored_operations": 2 * m * values},
    )  # fmt: skip


def block_cases(quick: bool) -> Iterator[Case]:
    rows, sparsities, sizes = QUICK.values() if quick else (ROWS, SPARSITIES, SIZES)
    for m, (n, k), sparsity, size in itertools.product(rows, MATRICES, sparsities, sizes):
        weight, x = block_weight(n, k, sparsity, size), torch.randn(m, k)
        packed = block_sparse.pack(weight, blocksize=size)
        ours = lambda x=x, packed=packed, n=n: F.block_sparse_linear(x, *packed, out_features=n)  # noqa: E731
        peers = {**dense(x, weight), **torch_bsr(x, weight, size), **unstructured(x, weight)}
        peers["weights"] = lambda weight=weight: weight
        yield case("block_sparse_linear", f"M{m} N{n} K{k} b{size} {sparsity:.0%}", ours, peers, packed[0], m)


def semi_cases(quick: bool) -> Iterator[Case]:
    for m, (n, k) in itertools.product(QUICK["rows"] if quick else (1, 4, 16, 32, 64, 128), MATRICES):
        weight, x = torch.randn(n, k), torch.randn(m, k)
        weight[~convert.two_four_mask(weight)] = 0.0
        packed = two_four.pack(weight)
        ours = lambda x=x, packed=packed, n=n: F.semi_sparse_linear(x, *packed, out_features=n)  # noqa: E731
        peers = {**dense(x, weight), **unstructured(x, weight), "weights": lambda weight=weight: weight}
        yield case("semi_sparse_linear", f"M{m} N{n} K{k} 2:4", ours, peers, packed[0], m)


def training_cases(quick: bool) -> Iterator[Case]:
    m, n, k = 128, *MATRICES[0]
    for size, sparsity in itertools.product((32,) if quick else (16, 32, 64), (0.5, 0.9)):
        weight = block_weight(n, k, sparsity, size)
        values, crow, col = block_sparse.pack(weight, blocksize=size)
        op = lambda x, v, i=(crow, col): F.block_sparse_linear(x, v, *i, out_features=n)  # noqa: E731
        stored = block_sparse.mask_of(crow, col, n, k, size)
        again = lambda g, stored=stored, size=size: block_sparse.pack(g, stored, size)[0]  # noqa: E731
        yield training_case("block_sparse_linear", f"M{m} N{n} K{k} b{size} {sparsity:.0%}", op, values, weight, again)
    weight = torch.randn(n, k)
    weight[~convert.two_four_mask(weight)] = 0.0
    values, index = two_four.pack(weight)
    op = lambda x, v: F.semi_sparse_linear(x, v, index, out_features=n)  # noqa: E731
    stored = two_four.mask_of(index, n, k)
    again = lambda g: two_four.pack(g, stored)[0]  # noqa: E731
    yield training_case("semi_sparse_linear", f"M{m} N{n} K{k} 2:4", op, values, weight, again)


def training_case(
    name: str, shape: str, op: Callable[..., torch.Tensor], values: torch.Tensor, weight: torch.Tensor,
    again: Callable[[torch.Tensor], torch.Tensor],
) -> Case:  # fmt: skip
    x, grad = torch.randn(128, weight.shape[1], requires_grad=True), torch.randn(128, weight.shape[0])
    values.requires_grad_()
    weight = weight.clone().requires_grad_()

    def ours():
        return torch.autograd.grad(op(x, values), (x, values), grad)

    def torchs():
        return torch.autograd.grad(tF.linear(x, weight), (x, weight), grad)

    def verify():
        (dx, dvalues), (dx_dense, dense_gradient) = ours(), torchs()
        close(dx, dx_dense)
        close(dvalues, again(dense_gradient))

    return Case(
        f"{name} fwd+bwd", shape, {name: ours, "F.linear": torchs}, verify, operations=6 * 128 * weight.numel(),
        extra={"stored_operations": 6 * 128 * values.numel()},
    )  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    groups = {"blocks": block_cases, "semi": semi_cases, "training": training_cases}
    quick = "--quick" in sys.argv
    for name in [a for a in sys.argv[1:] if not a.startswith("-")] or groups:
        with torch.inference_mode(name != "training"):
            run(groups[name](quick), f"block_sparse_{name}", rounds=ROUNDS)


if __name__ == "__main__":
    main()
