"""binary_coded_linear at 1 to 4 bits, groups of 128, against our int8_linear and torch's dense layers; quantization of
the activations included. The limit is reading the codes from where they are: beyond a few rows the look-ups are what
takes the time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bigmodel_ext import _reference, functional
from bigmodel_ext.bench import limits, peers, shapes
from bigmodel_ext.bench.harness import Call, Case, rotating
from bigmodel_ext.bench.limits import Limit
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.formats import binary_coded, int8

GROUP_SIZE = 128
BITS = {"quick": (3,), "default": (1, 2, 3, 4), "full": (1, 2, 3, 4)}
MS = (1, 4, 16, 128)
SHAPES = {
    "quick": ((1, 4096, 4096), (16, 3072, 768), (128, 3072, 768)),
    "default": shapes.every(MS, ((4096, 4096), *shapes.BERT)),
    "full": shapes.every(shapes.MS, (*shapes.LLAMA, *shapes.BERT)),
}
DENSE = ("torch fp32", "torch bf16")
COLD_BYTES = 2e6  # smaller layers' models fit in the last-level cache: they are never cold

Code = tuple[Tensor, Tensor]  # signs and alpha


def _code(n: int, k: int, bits: int) -> Code:
    signs = torch.randint(0, 256, (n, bits, -(-k // 8)), dtype=torch.uint8)
    return signs, (torch.rand(n, -(-k // GROUP_SIZE), bits) * 0.02).half()


def _ours(x: Tensor, code: Code, bias: Tensor) -> Call:
    packed = binary_coded.to_panels(code[0], x.shape[-1], GROUP_SIZE)
    scales, n = binary_coded.scales_to_panels(code[1]), bias.numel()
    return lambda: functional.binary_coded_linear(x, packed, scales, bias, out_features=n, group_size=GROUP_SIZE)


def _int8(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    weight_q, scale = functional.quantize_rows(weight)
    packed = int8.pack(weight_q)
    return lambda: functional.int8_linear(x, packed, scale, bias)


def _verify(x: Tensor, code: Code, bias: Tensor, ours: Call) -> None:
    n, k = bias.numel(), x.shape[-1]
    packed, scales = binary_coded.to_panels(code[0], k, GROUP_SIZE), binary_coded.scales_to_panels(code[1])
    expected = _reference.binary_coded_linear(x[:16], packed, scales, bias, n, GROUP_SIZE)
    assert torch.equal(torch.as_tensor(ours())[:16], expected), (
        f"binary_coded_linear {list(x.shape)}, {code[0].shape[1]} bits of {n}x{k}, differs from the reference"
    )


def _limit(traffic: float, cache: str) -> Limit:
    memory = limits.read_bandwidth(limits.BEYOND_CACHES)
    bandwidth = memory if cache == "cold" else limits.read_bandwidth(traffic)
    return Limit(f"reading {bandwidth / 1e9:.0f} GB/s", traffic / bandwidth, memory=memory)


def _in_turn(cache: str, weight_bytes: float, first: Call, another: partial[Call]) -> Call:
    """first, or with others like it in turn so that none is in a cache."""
    return first if cache == "warm" else rotating([first, *(another() for _ in range(peers.copies(weight_bytes) - 1))])


def _case(m: int, n: int, k: int, bits: int, cache: str, selection: Selection) -> Case:
    x, bias, code = torch.randn(m, k), torch.randn(n), _code(n, k, bits)
    weight = binary_coded.decode(*code, k, GROUP_SIZE)
    name, stored = f"{bits} bits", float(code[0].numel() + 2 * code[1].numel())
    ours = _ours(x, code, bias)
    candidates = {name: _in_turn(cache, stored, ours, partial(_ours, x, code, bias))}
    if selection.wants("our int8"):
        candidates["our int8"] = _in_turn(cache, n * k, _int8(x, weight, bias), partial(_int8, x, weight, bias))
    found = peers.linear_peers(DENSE, selection, x, weight, bias, cache)
    traffic = stored + 4.0 * m * (k + n)
    return Case(
        "binary_coded_linear", f"M={m} N={n} K={k} bits={bits}", {**candidates, **found},
        partial(_verify, x, code, bias, ours), 2.0 * m * n * k, traffic, limit=_limit(traffic, cache), cache=cache,
        dtypes={name: f"b{bits}", "our int8": "int8"} | {peer: peers.LINEAR[peer].dtype for peer in found},
        extra={"m": m, "n": n, "k": k, "bits": bits, "group_size": GROUP_SIZE},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    with torch.inference_mode():
        for m, n, k in selection.linear_shapes(MS) or SHAPES[selection.size]:
            for bits in BITS[selection.size]:
                yield _case(m, n, k, bits, "warm", selection)
                if m == 1 and n * k > COLD_BYTES:
                    yield _case(m, n, k, bits, "cold", selection)
