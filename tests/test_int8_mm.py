from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext._checks import INT8_MAX_K
from shapes import INTERPRETED, MNK, RANDOM, covering

EXTREMES = (-128, -127, 127)


def int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def exact(a, b):
    """In int64, where no sum of ours overflows."""
    return a.long() @ b.long().T


@pytest.mark.parametrize(("m", "n", "k"), [*MNK, *RANDOM])
def test_equals_int64(isa, m, n, k):
    a, b = int8(m, k), int8(n, k)
    out = F.int8_mm(a, b)
    assert out.dtype == torch.int32
    assert torch.equal(out.long(), exact(a, b))


@pytest.mark.parametrize("k", [2047, 2048, 2049, 4097])
def test_sums_over_blocks_of_k(isa, k):
    a, b = int8(13, k), int8(70, k)
    assert torch.equal(F.int8_mm(a, b).long(), exact(a, b))


@pytest.mark.parametrize(("left", "right"), [(-128, -128)] if INTERPRETED else covering(EXTREMES, EXTREMES))
def test_extremes(isa, left, right):
    a = torch.full((7, INT8_MAX_K), left, dtype=torch.int8)
    b = torch.full((3, INT8_MAX_K), right, dtype=torch.int8)
    assert F.int8_mm(a, b).unique().tolist() == [left * right * INT8_MAX_K]


def test_alternating_extremes(isa):
    """Neighbouring products of the same sign: where 16-bit saturation would show."""
    a = torch.tensor([-128, 127], dtype=torch.int8).repeat(9, 50)
    b = torch.tensor([[-128, 127], [127, -128], [-128, -128]], dtype=torch.int8).repeat(30, 50)
    assert torch.equal(F.int8_mm(a, b).long(), exact(a, b))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_k_too_large(device):
    a = torch.zeros(1, INT8_MAX_K + 1, dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match=r"K must be at most 131071 .* got 131072"):
        F.int8_mm(a, a)


@pytest.mark.cpu_only(reason="threads that share one call's work")
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 2000, 600), (700, 64, 257), (700, 200, 129), (40, 900, 2500), (450, 140, 2500)]
)
def test_threads_agree(isa, threads, m, n, k):
    """Large enough that the work is divided, by rows and by columns; the last in many blocks for each thread."""
    a, b = int8(m, k), int8(n, k)
    assert torch.equal(F.int8_mm(a, b).long(), exact(a, b))


def test_strides(isa):
    base = int8(150, 140)
    for a in (
        base,
        base.T,
        base[::2, ::2],
        base[3:, 5:],
        base[:1].expand(9, 140),
        base.flatten()[1:].view(-1)[:7000].view(50, 140),
    ):
        b = int8(66, 2 * a.shape[1])[:, 1::2]
        assert torch.equal(F.int8_mm(a, b).long(), exact(a, b))
        assert torch.equal(F.int8_mm(b, a).long(), exact(b, a))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    good = torch.zeros(2, 3, dtype=torch.int8, device=device)
    with pytest.raises(TypeError, match=r"a must be int8, got float32"):
        F.int8_mm(good.float(), good)
    with pytest.raises(TypeError, match=r"b must be int8, got uint8"):
        F.int8_mm(good, good.to(torch.uint8))
    with pytest.raises(ValueError, match=r"a must have 2 dimensions, got shape \[6\]"):
        F.int8_mm(good.reshape(-1), good)
    with pytest.raises(ValueError, match=r"b must have 2 dimensions, got shape \[\]"):
        F.int8_mm(good, good[0, 0])
    with pytest.raises(ValueError, match=r"a \[M,K\] and b \[N,K\] differ in K: \[2, 3\] and \[2, 2\]"):
        F.int8_mm(good, good[:, :2])


@pytest.mark.cpu_only(reason="the interpreter and the emulator run one call at a time")
def test_concurrent_calls(isa):
    """Working memory is per thread: callers of different sizes do not disturb each other."""
    pairs = [(int8(m, k), int8(n, k)) for m, n, k in [(1, 70, 40), (90, 130, 300), (7, 64, 2100), (130, 200, 64)] * 2]
    with ThreadPoolExecutor(8) as pool:
        for results in [list(pool.map(lambda p: F.int8_mm(*p), pairs)) for _ in range(5)]:
            for out, (a, b) in zip(results, pairs, strict=True):
                assert torch.equal(out.long(), exact(a, b))
