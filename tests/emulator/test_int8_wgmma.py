"""Hopper's int8 kernels at the edges of their tiles, steps and stages, with each place where they wait left out, and
what the heuristic chooses on such a device."""

import pytest
import torch
from bigmodel_ext import _reference
from emulation import SCHEDULES
from int8_cases import ACTIVATIONS, DTYPES, check_mm, check_waits, edges, int8, linear, make, mm
from tolerances import assert_as_accurate

STEP = 128
TILES = {
    "wgmma_64x128": (64, 128),
    "wgmma_128x128": (128, 128),
    "wgmma_128x256": (128, 256),
    "wgmma_256x192": (256, 192),
}
STAGES = {"wgmma_64x128": 8, "wgmma_128x128": 6, "wgmma_128x256": 4, "wgmma_256x192": 3}
MULTIPROCESSORS = 4


@pytest.mark.parametrize("kernel", TILES)
def test_edges(emulated, kernel):
    """One size about its edge at a time, then all; a quarter of a tile: a warp's rows, a piece of its columns."""
    m, n = TILES[kernel]
    rows = {j for i in (8, 16, 32, 64, m) for j in edges(i)} | {2 * m + 1}
    columns = {j for i in (8, 16, 32, n) for j in edges(i)} | {2 * n + 3, n + 36}
    depths = [j + d for j in (STEP, STAGES[kernel] * STEP) for d in (-16, 0, 16)] + [16, 32, 48, 2 * STEP]
    sizes = [(i, n // 2 + 4, 48) for i in rows] + [(m // 2, i, 16) for i in columns] + [(17, 20, i) for i in depths]
    for i, j, k in (*sizes, (m + 1, n + 1, STEP + 16)):
        check_mm(emulated, int8(i, k), int8(j, k), kernel)


@pytest.mark.parametrize("kernel", TILES)
def test_tiles_in_turn(steered, kernel):
    """More tiles than multiprocessors, more rows of tiles than go side by side, and steps that end inside the ring."""
    m, n = TILES[kernel]
    steered.configure(multiprocessors=MULTIPROCESSORS)
    for rows, columns, k in ((3 * m - 7, 3 * n - 9, 3 * STEP), (17 * m + 1, n + 1, 16), (m + 1, 33 * n + 1, 16)):
        check_mm(steered, int8(rows, k), int8(columns, k), kernel)
        (report,) = steered.take_reports()
        assert (report["kernel"], report["grid"]) == ("int8_wgmma", (MULTIPROCESSORS, 1, 1))
    mm(steered, int8(m, 16), int8(n, 16), kernel)
    assert steered.take_reports()[0]["grid"] == (1, 1, 1)


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("splits", [2, 4, 6])
def test_splits(emulated, kernel, splits):
    """As many as there are steps, and such as do not divide them; rows of the partial sums aligned and not."""
    k = 5 * STEP + 16
    for m, n in ((70, 132), (33, 37)):
        check_mm(emulated, int8(m, k), int8(n, k), kernel, splits)
        args = make(m, n, k, torch.bfloat16)
        assert torch.equal(linear(emulated, *args, kernel, splits), _reference.int8_linear(*args))


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(emulated, kernel, dtype):
    """n = 70 and 71: stores of four results at a time, and one by one."""
    for m, n, k in ((1, 70, 48), (66, 72, 64), (3, 71, 32), (19, 129, 400)):
        x, weight, weight_scale, bias = args = make(m, n, k, dtype)
        assert torch.equal(linear(emulated, *args, kernel), _reference.int8_linear(*args))
        for other in (None, bias.float(), bias.bfloat16(), bias.half()):
            expected = _reference.int8_linear(x, weight, weight_scale, other)
            assert torch.equal(linear(emulated, x, weight, weight_scale, other, kernel), expected)
        s = torch.tensor(0.01)
        expected = _reference.int8_linear(*args, "none", s)
        assert torch.equal(linear(emulated, *args, kernel, input_scale=s), expected)


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(emulated, kernel, activation):
    x, weight, weight_scale, bias = make(20, 90, 64)
    x, weight_scale = torch.randn(20, 64), weight_scale * 0.1
    ours = linear(emulated, x, weight, weight_scale, bias, kernel, activation=activation)
    before = _reference.int8_linear(x, weight, weight_scale, bias)
    exact = _reference.activate(before.double(), activation)
    assert_as_accurate(ours, _reference.activate(before, activation), exact)


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("splits", [1, 2])
def test_bases_that_tma_refuses(steered, kernel, splits):
    for m, n in ((20, 9), (7, 70)):
        a, b = int8(m, 272), int8(n, 272)
        shifted = [torch.cat((int8(4), t.flatten()))[4:].view(t.shape) for t in (a, b)]
        for operands in ((shifted[0], b), (a, shifted[1])):
            check_mm(steered, *operands, kernel, splits)
            assert steered.take_reports()[0]["kernel"] == "int8_tiles"


def check_run(native, kernel):
    """Sizes that need every wait: the ring is gone round, also by a second tile of a block."""
    m, n = TILES[kernel]
    for rows, columns, steps in ((2 * m, 3 * n, STAGES[kernel]), (m, n, STAGES[kernel] + 2)):
        a, b = int8(rows, steps * STEP), int8(columns, steps * STEP)
        assert torch.equal(mm(native, a, b, kernel).double(), a.double() @ b.double().T)


@pytest.mark.parametrize("kernel", TILES)
def test_schedules_agree(steered, kernel):
    for schedule, seed in SCHEDULES:
        steered.configure(schedule=schedule, seed=seed)
        check_run(steered, kernel)


@pytest.mark.parametrize("kernel", TILES)
def test_every_wait_is_missed(steered, kernel):
    check_waits(steered, lambda: check_run(steered, kernel), "int8_wgmma", 12)


def plan(native, m, n, k, **kernel):
    index, splits, _ = native.int8_plan(m, n, k, floats=True, device=0, **kernel)
    return native.int8_kernel_names()[index], splits


def test_plans(steered):
    """On a device with 132 multiprocessors: small M by the skinny kernels, then tiles that grow; K that is no multiple
    of 16 by the kernels of other devices."""
    steered.configure(architecture=90, multiprocessors=132)
    assert plan(steered, 4, 4096, 4096) == ("gemv", 1)
    assert plan(steered, 16, 4096, 4096) == ("skinny_32", 1)
    chosen = {
        (17, 768, 768): ("wgmma_64x128", 1),
        (64, 28672, 4096): ("wgmma_64x128", 1),
        (64, 4096, 14336): ("wgmma_64x128", 2),
        (65, 768, 768): ("wgmma_128x128", 1),
        (512, 4096, 4096): ("wgmma_128x128", 1),
        (512, 4096, 14336): ("wgmma_256x192", 3),
        (2048, 4096, 4096): ("wgmma_128x256", 1),
        (2048, 4096, 14336): ("wgmma_128x256", 1),
        (2048, 6144, 4096): ("wgmma_256x192", 1),
        (2048, 28672, 4096): ("wgmma_256x192", 1),
    }
    assert {sizes: plan(steered, *sizes) for sizes in chosen} == chosen
    assert plan(steered, 64, 768, 770) == ("tile_64x64", 1)
    assert plan(steered, 64, 768, 0) == ("tile_64x64", 1)


def test_refusals(steered):
    for k in (0, 8, 130):
        with pytest.raises(ValueError, match=f"the kernel wgmma_64x128 does not take M=20, K={k}"):
            plan(steered, 20, 20, k, kernel="wgmma_64x128")
    for splits, k, most in ((0, 64, 1), (2, 128, 1), (4, 272, 3)):
        with pytest.raises(ValueError, match=rf"splits must be in \[1, {most}\], got {splits}"):
            plan(steered, 20, 20, k, kernel="wgmma_128x128", splits=splits)
    a, out = int8(20, 64), torch.empty(20, 20, dtype=torch.int32)
    made = steered.int8_plan(20, 20, 64, floats=False, device=0, kernel="wgmma_128x256")
    for architecture in (80, 89, 100):
        steered.configure(architecture=architecture)
        message = f"the kernel wgmma_128x256 needs compute capability 9.0, this device has {architecture / 10}"
        with pytest.raises(ValueError, match=message):
            plan(steered, 20, 20, 64, kernel="wgmma_128x256")
        with pytest.raises(ValueError, match=message):
            steered.int8_mm(a, a, out, made, torch.empty(256, dtype=torch.uint8))
