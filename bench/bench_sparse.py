"""Sparse linear layers against torch's dense and sparse ones on one thread: `python bench/bench_sparse.py [filter]`.

GOPS counts the dense product's operations ("effective"); the column stored_operations counts those with stored weights.
With PEAK_GFLOPS=<the core's best fp32 rate> the share of it that these reach is printed too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as tF
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats import block, csr, int8

from bench.harness import Case, run

ROUNDS = 7
SHAPES = ((128, 4096, 4096), (128, 768, 3072), (1, 4096, 4096))  # M, N, K
SPARSITIES = {1: (0.7, 0.9), 128: (0.5, 0.7, 0.8, 0.9, 0.95)}


def close(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def csr_candidates(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, Callable[[], object]]:
    """torch's own sparse product (MKL, where this torch has it)."""
    sparse = weight.to_sparse_csr()
    try:
        torch.addmm(bias[:, None], sparse, x.t())
    except RuntimeError:
        return {}
    return {"torch CSR": lambda: torch.addmm(bias[:, None], sparse, x.t()).t()}


def fp32_cases() -> Iterator[Case]:
    for m, n, k in SHAPES:
        for sparsity in SPARSITIES[m]:
            weight = torch.where(torch.rand(n, k) >= sparsity, torch.randn(n, k), 0.0)
            x, bias, panel = torch.randn(m, k), torch.randn(n), csr.panel_for(1 - sparsity)
            values, crow, col = csr.pack(weight, panel=panel)
            ours = lambda x=x, p=(values, crow, col), b=bias, n=n, panel=panel: F.sparse_linear(  # noqa: E731
                x, *p, b, out_features=n, panel=panel
            )
            x16, w16, b16 = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
            candidates = {
                "sparse_linear": ours,
                "F.linear": lambda x=x, w=weight, b=bias: tF.linear(x, w, b),
                "F.linear bf16": lambda x=x16, w=w16, b=b16: tF.linear(x, w, b),
                **csr_candidates(x, weight, bias),
            }
            yield Case(
                "sparse_linear", f"M{m} N{n} K{k} {sparsity:.0%}", candidates,
                lambda ours=ours, c=candidates: close(ours(), c["F.linear"]()),
                operations=2 * m * n * k, bytes=5 * values.numel() if m == 1 else 0,
                extra={"stored_operations": 2 * m * values.numel(), "panel": panel},
            )  # fmt: skip


def training_cases() -> Iterator[Case]:
    m, n, k = SHAPES[0]
    for sparsity in (0.5, 0.9):
        dense = torch.where(torch.rand(n, k) >= sparsity, torch.randn(n, k), 0.0)
        panel = csr.panel_for(1 - sparsity)
        values, crow, col = csr.pack(dense, panel=panel)
        x, grad = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
        values.requires_grad_()
        dense.requires_grad_()

        def ours(x=x, values=values, crow=crow, col=col, grad=grad, panel=panel):
            y = F.sparse_linear(x, values, crow, col, out_features=n, panel=panel)
            return torch.autograd.grad(y, (x, values), grad)

        def torchs(x=x, dense=dense, grad=grad):
            return torch.autograd.grad(tF.linear(x, dense), (x, dense), grad)

        mask = dense.detach() != 0

        def verify(ours=ours, torchs=torchs, mask=mask, panel=panel):
            (dx, dvalues), (dx_dense, dense_gradient) = ours(), torchs()
            close(dx, dx_dense)
            close(dvalues, csr.pack(dense_gradient, mask, panel)[0])

        yield Case(
            "sparse_linear fwd+bwd", f"M{m} N{n} K{k} {sparsity:.0%}", {"sparse_linear": ours, "F.linear": torchs},
            verify, operations=6 * m * n * k, extra={"stored_operations": 6 * m * values.numel(), "panel": panel},
        )  # fmt: skip


def int8_cases() -> Iterator[Case]:
    for m, n, k in SHAPES:
        for sparsity in SPARSITIES[m]:
            keep = torch.rand(n, k // 4, 1) >= sparsity
            weight = torch.where(keep, torch.randint(-127, 128, (n, k // 4, 4)), 0).reshape(n, k).to(torch.int8)
            x, scale, bias = torch.randn(m, k), torch.rand(n), torch.randn(n)
            panel = csr.panel_for(1 - sparsity)
            values, crow, col, row_sum = block.pack(weight, panel)
            args = (x, values, crow, col, scale, row_sum, bias)
            ours = lambda args=args, panel=panel: F.int8_sparse_linear(*args, panel=panel)  # noqa: E731
            dense, packed_int8 = weight * scale[:, None], int8.pack(weight)

            def verify(args=args, ours=ours, panel=panel):
                assert torch.equal(ours(), _reference.int8_sparse_linear(*args, panel)), "differs from the reference"

            candidates = {
                "int8_sparse_linear": ours,
                "F.linear": lambda x=x, w=dense, b=bias: tF.linear(x, w, b),
                "int8_linear": lambda x=x, w=packed_int8, s=scale, b=bias: F.int8_linear(x, w, s, b),
            }
            yield Case(
                "int8_sparse_linear", f"M{m} N{n} K{k} 1x4 {sparsity:.0%}", candidates, verify,
                operations=2 * m * n * k, bytes=5 * col.numel() if m == 1 else 0,
                extra={"stored_operations": 2 * m * values.numel(), "panel": panel},
            )  # fmt: skip


def print_real(rows: list[dict[str, object]]) -> None:
    """Operations with stored weights per second, one line a shape."""
    peak = float(os.environ.get("PEAK_GFLOPS", "0"))
    for row in rows:
        if row["peer"] != "F.linear" or "stored_operations" not in row:
            continue
        real = float(str(row["stored_operations"])) / float(str(row["ours_us"])) / 1e3
        share = f"  {real / peak:.0%} of {peak:g}" if peak and row["op"] != "int8_sparse_linear" else ""
        print(f"{row['op']:22s} {row['shape']:24s} real {real:7.1f} GOPS{share}")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    groups = {"fp32": fp32_cases, "int8": int8_cases, "training": training_cases}
    wanted = sys.argv[1:] or list(groups)
    rows = []
    for name in wanted:
        with torch.inference_mode(name != "training"):
            rows += run(groups[name](), f"sparse_{name}", rounds=ROUNDS)
    print_real(rows)


if __name__ == "__main__":
    main()
