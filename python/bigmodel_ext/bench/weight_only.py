"""int8_weight_only_linear: int8 weights under float32 activations, against dense float layers and int8 ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bigmodel_ext import _reference, functional
from bigmodel_ext.bench import limits, peers, shapes
from bigmodel_ext.bench.harness import Call, Case, rotating
from bigmodel_ext.bench.int8 import COLD_BYTES, SHAPES
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats.int8 import pack


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    weight_q, scale = functional.quantize_rows(weight)
    packed = pack(weight_q)
    return lambda: functional.int8_weight_only_linear(x, packed, scale, bias)


def _verify(x: Tensor, weight: Tensor, bias: Tensor, ours: Call) -> None:
    weight_q, scale = _reference.quantize_rows(weight)
    wanted = _reference.int8_weight_only_linear(x, pack(weight_q), scale, bias)
    torch.testing.assert_close(torch.as_tensor(ours()), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def _case(m: int, n: int, k: int, cache: str, selection: Selection) -> Case:
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    run = ours = _ours(x, weight, bias)
    if cache == "cold":
        run = rotating([ours, *(_ours(x, weight, bias) for _ in range(peers.copies(n * k) - 1))])
    found = peers.linear_peers(peers.FP32, selection, x, weight, bias, cache)
    operations, traffic = 2.0 * m * n * k, float(n * k + 4 * m * (k + n))
    return Case(
        "int8_weight_only_linear", f"M={m} N={n} K={k}", {"int8_weight_only_linear": run, **found},
        partial(_verify, x, weight, bias, ours), operations, traffic,
        limit=limits.linear("fp32", operations, traffic, cache), cache=cache,
        dtypes={name: peers.LINEAR[name].dtype for name in found},
        extra={"m": m, "n": n, "k": k, "dtype": "fp32"},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        for m, n, k in selection.linear_shapes(shapes.MS) or dict.fromkeys(SHAPES[selection.size]):
            yield _case(m, n, k, "warm", selection)
            if m == 1 and n * k > COLD_BYTES:
                yield _case(m, n, k, "cold", selection)
