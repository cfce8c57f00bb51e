"""The only source of shapes: the sizes around every tile edge of the kernels, and random ones drawn from a seed."""

import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

EXECUTED = {"triton": "triton", "emulated": "emulated"}.get(os.environ.get("BIGMODEL_BACKEND", ""))
"""The backend of a device that is executed on this CPU, slowly: there are fewer and smaller shapes then."""

INTERPRETED = EXECUTED == "triton"
"""By Triton's interpreter, which takes a millisecond for a step of a program's loop, whatever the tile."""


def covering(*factors: Sequence) -> list[tuple]:
    """All combinations of the factors' values; in the interpreter as many that each value of each one occurs."""
    if not INTERPRETED:
        return list(itertools.product(*factors))
    return [tuple(f[i % len(f)] for f in factors) for i in range(max(map(len, factors)))]


EDGES = (0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 257)
if EXECUTED:
    EDGES = (0, 1, 7, 16, 17, 129)

# Sizes 0 and 1 in each place, one either side of the tiles (6x64 int8, 64-column sparse, 128-wide panels), primes.
MNK = (
    *((m, 5, 7) for m in (0, 1, 2, 5, 6, 7, 15, 16, 17, 63, 64, 65, 97, 131)),
    *((3, n, 9) for n in (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191)),
    *((9, 6, k) for k in (0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1031)),
    (0, 0, 0), (1, 1, 1), (33, 70, 130), (70, 130, 258), (17, 384, 384), (128, 192, 96),
)  # fmt: skip
if EXECUTED:
    MNK = (
        (0, 5, 7), (5, 0, 7), (5, 7, 0), (1, 1, 1), (1, 129, 65), (2, 63, 31), (16, 64, 128), (17, 65, 129),
        (33, 15, 257), (65, 70, 16), (40, 129, 144), (129, 193, 272),
    )  # fmt: skip


def random_mnk(count: int, seed: int = 0) -> list:
    count = count if not EXECUTED else min(count, 5)
    rng = random.Random(seed)
    draw = lambda: rng.choice((rng.randint(0, 8), rng.randint(1, 70), rng.randint(60, 300)))  # noqa: E731
    shapes = [(draw(), draw(), draw()) for _ in range(count)]
    return [pytest.param(*s, id="x".join(map(str, s))) for s in shapes]


RANDOM = random_mnk(300)


# The search for spins, (N, K, group_size): about its 16 rows side by side, 128 inputs to a block of the start and 1024
# places of the field to an update; groups of one size, a shorter last one, and one longer than K.
ISING = (
    *((n, 9, 8) for n in (0, 1, 2, 15, 16, 17, 131)),
    *((3, k, 8) for k in (0, 1, 7, 8, 9, 16)),
    *((5, k, 128) for k in (1, 127, 128, 129, 257)),
    (18, 200, 64), (33, 70, 300), (1, 1030, 512),
)  # fmt: skip


@dataclass(frozen=True)
class Conv:
    """A convolution: x [b, c, *size], n outputs; padding is (top, bottom, left, right)."""

    b: int = 1
    c: int = 3
    size: tuple[int, int] = (9, 11)
    n: int = 5
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def k(self) -> int:
        return self.c // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c // self.groups, *self.kernel)

    @property
    def window(self):
        return self.kernel, self.stride, self.padding, self.dilation, self.groups


NO_PADDING = (0, 0, 0, 0)
# Batches, channels and outputs about the tiles (16 pixels and channels, 64 outputs or pixels), every window size,
# stride, padding and dilation, and groups of one, some and many channels.
CONVS = (
    *(Conv(b=b) for b in (0, 2, 5)),
    *(Conv(c=c, n=6, padding=NO_PADDING) for c in (1, 2, 4, 5, 15, 16, 17, 63, 64, 65)),
    *(Conv(2, c, n=n, kernel=(1, 1), padding=NO_PADDING) for c, n in ((1, 1), (3, 64), (64, 65), (65, 63), (4, 130))),
    *(Conv(n=n) for n in (1, 2, 16, 63, 64, 65, 129)),
    *(Conv(size=(1, w), kernel=(1, 3)) for w in (1, 15, 16, 17, 63, 64, 65, 130)),
    *(Conv(size=size, padding=NO_PADDING, kernel=(1, 1)) for size in ((1, 1), (8, 8), (7, 9), (13, 10))),
    *(Conv(size=(3, 70), stride=(1, s)) for s in (2, 3)),
    *(Conv(1, 3, (15, 14), 5, (k, k), stride=(s, s), padding=(k // 2,) * 4) for k in (1, 3, 5, 7) for s in (1, 2, 3)),
    *(Conv(size=(15, 14), kernel=(3, 2), dilation=d) for d in ((2, 1), (1, 2), (2, 3))),
    *(Conv(padding=p) for p in ((0, 0, 0, 3), (2, 0, 0, 0), (5, 4, 3, 2), (0, 1, 1, 0))),
    *(Conv(c=12, n=24, groups=g, b=2) for g in (2, 3, 12)),
    *(Conv(c=c, n=c, groups=c, b=2, stride=(2, 1)) for c in (15, 16, 17, 70)),
    Conv(c=128, n=128, groups=2), Conv(c=6, n=130, groups=2, kernel=(1, 1), padding=NO_PADDING),
    Conv(c=70, n=70, groups=70, kernel=(5, 3), dilation=(1, 2), stride=(1, 3)), Conv(c=230, n=66, size=(5, 6)),
)  # fmt: skip


def random_convs(count: int, seed: int = 0) -> list[Conv]:
    rng = random.Random(seed)
    found = []
    while len(found) < count:
        groups, draw = rng.choice((1, 1, 1, 2, 3, 8)), lambda: rng.choice((1, 2, 3, 4, 8, 16, 17, 33, 64, 65, 70))
        two = lambda *values: (rng.choice(values), rng.choice(values))  # noqa: E731
        padding = rng.choice((NO_PADDING, (*two(0, 1, 2), *two(0, 1, 3))))
        conv = Conv(
            rng.randint(1, 4), groups * draw(), two(*range(1, 21)), groups * draw(), two(1, 1, 2, 3, 5),
            rng.choice(((1, 1), two(1, 2, 3))), padding, rng.choice(((1, 1), two(1, 2))), groups,
        )  # fmt: skip
        reach = [conv.dilation[i] * (conv.kernel[i] - 1) for i in (0, 1)]
        if all(conv.size[i] + sum(padding[2 * i : 2 * i + 2]) > reach[i] for i in (0, 1)):
            found.append(conv)
    return found


RANDOM_CONVS = random_convs(150)
