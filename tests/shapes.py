"""The only source of shapes: the sizes around every tile edge of the kernels, and random ones drawn from a seed."""

import random

import pytest

EDGES = (0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 257)

# Sizes 0 and 1 in each place, one either side of the tiles (6x64 int8, 64-column sparse, 128-wide panels), primes.
MNK = (
    *((m, 5, 7) for m in (0, 1, 2, 5, 6, 7, 15, 16, 17, 63, 64, 65, 97, 131)),
    *((3, n, 9) for n in (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191)),
    *((9, 6, k) for k in (0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1031)),
    (0, 0, 0), (1, 1, 1), (33, 70, 130), (70, 130, 258), (17, 384, 384), (128, 192, 96),
)  # fmt: skip


def random_mnk(count: int, seed: int = 0) -> list:
    rng = random.Random(seed)
    draw = lambda: rng.choice((rng.randint(0, 8), rng.randint(1, 70), rng.randint(60, 300)))  # noqa: E731
    shapes = [(draw(), draw(), draw()) for _ in range(count)]
    return [pytest.param(*s, id="x".join(map(str, s))) for s in shapes]


RANDOM = random_mnk(300)
