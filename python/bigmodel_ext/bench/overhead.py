"""What a call costs beside its arithmetic: every op on a 1x16 input against F.linear, under inference_mode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as TF
from torch import Tensor

from bigmodel_ext import functional as F
from bigmodel_ext.bench.harness import Call, Case
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats import block, csr, int8


def _verify(run: Call) -> None:
    result = run()
    out = result[0] if isinstance(result, tuple) else result
    assert isinstance(out, Tensor)
    assert out.shape == (1, 16)
    assert out.float().isfinite().all()


def _calls() -> tuple[dict[str, Call], dict[str, Call]]:
    """Ours, and what each is held against."""
    n = k = 16
    x, weight, bias = torch.randn(1, k), torch.randn(n, k), torch.randn(n)
    weight_q, scale = F.quantize_rows(weight)
    packed = int8.pack(weight_q)
    values, crow, col = csr.pack(weight * (torch.rand(n, k) < 0.5))
    blocks, block_crow, block_col, row_sum = block.pack(weight_q)
    q = F.quantize_rows(x)[0]
    ours: dict[str, Call] = {
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
    theirs: dict[str, Call] = {
        "torch fp32": lambda: TF.linear(x, weight, bias),
        "torch fp32, no bias": lambda: TF.linear(x, weight),
    }
    return ours, theirs


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        ours, theirs = _calls()
        chosen = {name: run for name, run in theirs.items() if selection.wants(name)}
        for name, run in ours.items():
            yield Case(name, "1x16", {"ours": run, **chosen}, partial(_verify, run))
