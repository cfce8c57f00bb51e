"""int8_linear with packed weights, float32 in and out, quantization of the activations included."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bigmodel_ext import _reference, functional
from bigmodel_ext.bench import limits, peers, shapes
from bigmodel_ext.bench.harness import Call, Case, rotating
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats.int8 import pack

NINE = (  # M, N, K: the shapes that the issues' figures are for
    (1, 1536, 384), (1, 3072, 768), (1, 4096, 4096), (16, 3072, 768), (64, 768, 768), (128, 384, 384),
    (128, 3072, 768), (1576, 3072, 768), (512, 1024, 4096),
)  # fmt: skip
SHAPES = {
    "quick": ((1, 3072, 768), (128, 3072, 768), (1, 4096, 4096)),
    "default": (
        *NINE,
        *shapes.every((1, 16, 128), ((6144, 4096), (4096, 14336), (2304, 768), (768, 3072), (1152, 384))),
    ),
    "full": (*NINE, *shapes.every(shapes.MS, shapes.MODELS)),
}
COLD_BYTES = 2e6  # smaller layers' models fit in the last-level cache: they are never cold


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    weight_q, scale = functional.quantize_rows(weight)
    packed = pack(weight_q)
    return lambda: functional.int8_linear(x, packed, scale, bias)


def _verify(x: Tensor, weight: Tensor, bias: Tensor, ours: Call) -> None:
    weight_q, scale = _reference.quantize_rows(weight)
    assert torch.equal(torch.as_tensor(ours()), _reference.int8_linear(x, weight_q, scale, bias)), (
        f"int8_linear {list(x.shape)} x {list(weight.shape)} differs from the reference"
    )


def _case(m: int, n: int, k: int, cache: str, selection: Selection) -> Case:
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    run = ours = _ours(x, weight, bias)
    if cache == "cold":
        run = rotating([ours, *(_ours(x, weight, bias) for _ in range(peers.copies(n * k) - 1))])
    verify = partial(_verify, x, weight, bias, ours)
    found = peers.linear_peers(peers.INT8, selection, x, weight, bias, cache)
    operations, traffic = 2.0 * m * n * k, float(n * k + 4 * m * (k + n))
    return Case(
        "int8_linear", f"M={m} N={n} K={k}", {"int8_linear": run, **found}, verify, operations, traffic,
        limit=limits.linear("int8", operations, traffic, cache), cache=cache,
        dtypes={name: peers.LINEAR[name].dtype for name in found},
        extra={"m": m, "n": n, "k": k, "dtype": "int8"},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        for m, n, k in selection.linear_shapes(shapes.MS) or dict.fromkeys(SHAPES[selection.size]):
            yield _case(m, n, k, "warm", selection)
            if m == 1 and n * k > COLD_BYTES:
                yield _case(m, n, k, "cold", selection)
