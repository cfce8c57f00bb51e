"""Which of CUDA's and Triton's kernels is faster, by op and class of sizes: the rows of bigmodel_ext/measured.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import gpu

N = K = 4096
ROWS = (1, 8, 64, 1024)  # one of each class


def _arguments(m: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    import bigmodel_ext as bm
    import torch

    x, grad = torch.randn(2, m, K, device=gpu.DEVICE, dtype=torch.bfloat16)
    seed, weight = torch.tensor(7, device=gpu.DEVICE), torch.randn(K, device=gpu.DEVICE, dtype=torch.bfloat16)
    linear = torch.nn.Linear(K, N, bias=False, device=gpu.DEVICE, dtype=torch.bfloat16)
    int8, weight_only = bm.nn.Int8Linear.from_float(linear), bm.nn.Int8WeightOnlyLinear.from_float(linear)
    coded = bm.nn.BinaryCodedLinear(K, N, False, gpu.DEVICE, torch.bfloat16)
    yield "int8_linear", (x, int8.packed, int8.weight_scale, None, "none", None)
    yield "int8_weight_only_linear", (x, weight_only.packed, weight_only.weight_scale, None, "none")
    yield "binary_coded_linear", (x, coded.packed, coded.scales, None, N, coded.group_size, "none")
    yield "quantize_rows", (x,)
    yield "fused_dropout", (x, weight, x, seed, 0.1, "gelu")
    yield "fused_dropout_backward", (grad, x, weight, seed, 0.1, "gelu")
    norm = (x, weight, x, seed, weight, None, 0.1, "gelu", "layer", 1e-5)
    yield "fused_dropout_norm", norm
    out = torch.ops.bigmodel_ext.fused_dropout_norm(*norm)
    backward = (grad, None, *out[1:], x, weight, seed, weight, 0.1, "gelu", "layer")
    yield "fused_dropout_norm_backward", backward


def candidates(op: str, x: Any) -> dict[str, Callable[..., Any]]:
    """The kernels that take x, by backend."""
    from bigmodel_ext import _dispatch

    found = _dispatch._table.get((op, x.device.type), [])
    return {c.backend: c.run for c in found if c.backend != "reference" and c.refusal(x) is None}


def measure() -> tuple[list[Any], list[dict[str, Any]]]:
    """Rows for measured.json, and the same for the CSV."""
    import statistics

    import torch
    from bigmodel_ext import _measured
    from gpu.timing import take_turns

    found, rows = [], []
    with torch.inference_mode():
        for m in ROWS:
            for op, args in _arguments(m):
                runs = candidates(op, args[0])
                if len(runs) < 2:
                    continue
                times = take_turns({backend: [lambda run=run: run(*args)] for backend, run in runs.items()})  # noqa: B023
                medians = sorted((statistics.median(seconds), backend) for backend, seconds in times.items())
                (best, backend), (second, other) = medians[:2]
                where = _measured.architecture(args[0].device), _measured.shape_class(args[0])
                row = _measured.Row(op, *where, backend, round(second / best, 3), date.today().isoformat())
                found.append(row)
                rows.append({"op": f"{op}: {backend}", "shape": f"{m}x{N}x{K}", "dtype": "bfloat16", "peer": other,
                             "ours_us": round(best * 1e6, 2), "peer_us": round(second * 1e6, 2),
                             "speedup": row.ratio})  # fmt: skip
    return found, rows
