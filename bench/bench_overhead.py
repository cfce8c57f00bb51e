"""What a call costs beside its arithmetic: every op on a 1x16 input against F.linear, under inference_mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as TF
from bigmodel_ext import functional as F
from bigmodel_ext.formats import block, csr, int8

from bench import harness


def _verify(run: Callable[[], object]) -> None:
    result = run()
    out = result[0] if isinstance(result, tuple) else result
    assert isinstance(out, torch.Tensor)
    assert out.shape == (1, 16)
    assert out.float().isfinite().all()


def cases() -> Iterator[harness.Case]:
    n = k = 16
    x, weight, bias = torch.randn(1, k), torch.randn(n, k), torch.randn(n)
    weight_q, scale = F.quantize_rows(weight)
    packed = int8.pack(weight_q)
    values, crow, col = csr.pack(weight * (torch.rand(n, k) < 0.5))
    blocks, block_crow, block_col, row_sum = block.pack(weight_q)
    q = F.quantize_rows(x)[0]
    ours = {
        "quantize_rows": lambda: F.quantize_rows(x),
        "int8_mm": lambda: F.int8_mm(q, weight_q),
        "int8_linear": lambda: F.int8_linear(x, packed, scale, bias),
        "sparse_linear": lambda: F.sparse_linear(x, values, crow, col, bias, out_features=n, panel=csr.PANEL),
        "int8_sparse_linear": lambda: F.int8_sparse_linear(
            x, blocks, block_crow, block_col, scale, row_sum, bias, panel=block.PANEL
        ),
        "fused_dropout": lambda: F.fused_dropout(x, 0.5, bias=bias),
        "fused_dropout eval": lambda: F.fused_dropout(x, 0.5, training=False, bias=bias),
    }
    for name, run in ours.items():
        peers = {"F.linear": lambda: TF.linear(x, weight, bias), "F.linear, no bias": lambda: TF.linear(x, weight)}
        yield harness.Case(name, "1x16", {"ours": run, **peers}, partial(_verify, run))


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        harness.run(cases(), "overhead", rounds=51)


if __name__ == "__main__":
    main()
