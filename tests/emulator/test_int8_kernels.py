"""The CUDA int8 kernels one by one, each at its own tiles' edges; the op tests see only those that sizes choose."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bigmodel_ext import _reference
from emulation import SCHEDULES
from int8_cases import (
    ACTIVATIONS,
    DTYPES,
    check_guards,
    check_mm,
    check_waits,
    edges,
    guarded,
    int8,
    linear,
    make,
    mm,
    workspace,
)
from tolerances import assert_as_accurate

TILES = {"tile_64x64": (64, 64, 128), "tile_128x128": (128, 128, 64), "tile_128x256": (128, 256, 64)}
SKINNY = {"skinny_8": 8, "skinny_32": 32}


@pytest.mark.parametrize("kernel", TILES)
def test_tiles_at_their_edges(emulated, kernel):
    """One size about its edge at a time, then all; K up to more steps than there are stages."""
    m, n, k = TILES[kernel]
    sizes = [(i, n // 2 + 4, k) for i in (*edges(m), 2 * m + 1)] + [(m // 2, i, k) for i in (*edges(n), 2 * n + 3)]
    sizes += [(17, 20, i) for i in (0, 16, k - 16, k, k + 16, 3 * k, 4 * k, 5 * k + 16)] + [(m + 1, n + 1, k + 16)]
    sizes += [(8 * m + 1, n + 1, 16)]  # eight rows of tiles go over the columns together
    for m, n, k in sizes:
        check_mm(emulated, int8(m, k), int8(n, k), kernel)


@pytest.mark.parametrize("kernel", SKINNY)
def test_skinny_at_its_edges(emulated, kernel):
    """A warp takes 64 of K, a round of all eight warps 512, and two rounds are loaded together."""
    sizes = [(m, 37, 80) for m in (1, 7, 8, 9, 15, 16)] + [(16, n, 64) for n in edges(SKINNY[kernel])]
    sizes += [(11, 10, k) for k in (0, 16, 48, 64, 80, 496, 512, 528, 1008, 1024, 1040, 2064)]
    for m, n, k in sizes:
        check_mm(emulated, int8(m, k), int8(n, k), kernel)


@pytest.mark.parametrize("kernel", [*TILES, *SKINNY])
@pytest.mark.parametrize("k", [16, 20, 35, 131, 132, 144])
@pytest.mark.parametrize("offset", [0, 4, 1])
def test_alignment(emulated, kernel, k, offset):
    """Rows and bases that only loads of 4 bytes, or of one, can reach; either operand."""
    for m, n in ((16, 9), (7, 70)):
        a, b = int8(m, k), int8(n, k)
        shifted = [torch.cat((int8(offset), t.flatten()))[offset:].view(t.shape) for t in (a, b)]
        check_mm(emulated, shifted[0], b, kernel)
        check_mm(emulated, a, shifted[1], kernel)


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("splits", [2, 3, 5, 11])
def test_splits(emulated, kernel, splits):
    """Also more of them than there are steps of K; rows of the partial sums aligned and not."""
    m, wide, k = TILES[kernel]
    for n in (wide + 4, 37):
        check_mm(emulated, int8(m // 2 + 1, 5 * k + 16), int8(n, 5 * k + 16), kernel, splits)
        args = make(19, n, 5 * k, torch.bfloat16)
        assert torch.equal(linear(emulated, *args, kernel, splits), _reference.int8_linear(*args))


@pytest.mark.parametrize("kernel", ["gemv", *SKINNY, *TILES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(emulated, kernel, dtype):
    """n = 70 and 71: stores of four results at a time, and one by one."""
    for m, n, k in ((1, 70, 50), (2, 72, 64), (3, 71, 33), (4, 129, 2064), (4, 5, 0)):
        x, weight, weight_scale, bias = args = make(m, n, k, dtype)
        assert torch.equal(linear(emulated, *args, kernel), _reference.int8_linear(*args))
        for other in (None, bias.float(), bias.bfloat16(), bias.half()):
            expected = _reference.int8_linear(x, weight, weight_scale, other)
            assert torch.equal(linear(emulated, x, weight, weight_scale, other, kernel), expected)
        s = torch.tensor(0.01)
        expected = _reference.int8_linear(*args, "none", s)
        assert torch.equal(linear(emulated, *args, kernel, input_scale=s), expected)


@pytest.mark.parametrize("kernel", ["gemv", *SKINNY, *TILES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(emulated, kernel, activation):
    x, weight, weight_scale, bias = make(4, 90, 64)
    x, weight_scale = torch.randn(4, 64), weight_scale * 0.1
    ours = linear(emulated, x, weight, weight_scale, bias, kernel, activation=activation)
    before = _reference.int8_linear(x, weight, weight_scale, bias)
    exact = _reference.activate(before.double(), activation)
    assert_as_accurate(ours, _reference.activate(before, activation), exact)


@pytest.mark.parametrize("width", [0, 4, 1])
def test_gemv_at_its_edges(emulated, width):
    """A warp's step is 2048 of K; two outputs to a warp, eight warps to a block, eight blocks here."""
    for m in (1, 2, 3, 4):
        for n, k in ((1, 64), (2, 16), (127, 48), (128, 32), (129, 2048), (257, 80), (5, 2064), (3, 6160)):
            args = make(m, n, k + width, DTYPES[(m + n) % 3])
            assert torch.equal(linear(emulated, *args, "gemv"), _reference.int8_linear(*args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_longer_than_registers(emulated, dtype, fixed):
    """About 1024 or 2048, a warp's registers, and 8192 or 16384, a block's; and a quarter of these for odd rows."""
    step = 8 if dtype == torch.float32 else 16
    ends = [256 * step // 8 * 4, 64 * step, 512 * step, 1024 * step, 128 * step]
    for k in {j + d for j in ends for d in (-1, 0, 1, 8)} | {3 * 1024 * step + 24}:
        x = torch.randn(3, k).to(dtype)
        x[0, k - 1], x[1, 0] = 100.0, -50.0
        if fixed:
            args = (x, torch.ones(2, k, dtype=torch.int8), torch.ones(2), None, "none", torch.tensor(0.02))
            ours = linear(emulated, *args[:4], "skinny_8", input_scale=args[5])
            assert torch.equal(ours, _reference.int8_linear(*args))
            continue
        (q, q_whole), (scale, scale_whole) = guarded(3, k, dtype=torch.int8), guarded(3, dtype=torch.float32)
        emulated.quantize_rows(x, q, scale)
        check_guards(q_whole)
        check_guards(scale_whole)
        assert all(map(torch.equal, (q, scale), _reference.quantize_rows(x)))


# Sizes that need every wait of the kernel; the plan's name, the launch's name, and how many places wait.
RUNS = {
    "tile_64x64": ("int8_tiles", 5, ((70, 70, 128), (65, 66, 640))),
    "tile_128x128": ("int8_tiles", 5, ((130, 130, 64), (129, 70, 320))),
    "tile_128x256": ("int8_tiles", 5, ((130, 258, 64), (129, 200, 320))),
    "skinny_8": ("int8_skinny", 1, ((16, 9, 600),)),
    "skinny_32": ("int8_skinny", 1, ((16, 33, 600),)),
    "gemv": ("int8_gemv", 2, ((4, 20, 2100),)),
    "rows": ("quantize_rows", 1, ((3, 3, 4096),)),
}


def check_run(native, name):
    for args in (make(*sizes) for sizes in RUNS[name][2]):
        y = linear(native, *args, "skinny_8" if name == "rows" else name)
        assert torch.equal(y, _reference.int8_linear(*args))


@pytest.mark.parametrize("name", RUNS)
def test_schedules_agree(steered, name):
    for schedule, seed in SCHEDULES:
        steered.configure(schedule=schedule, seed=seed)
        check_run(steered, name)


@pytest.mark.parametrize("name", RUNS)
def test_every_wait_is_missed(steered, name):
    check_waits(steered, lambda: check_run(steered, name), *RUNS[name][:2])


def test_nothing_outside_the_operands_is_touched(emulated):
    """In a process of its own, which a wrong access ends."""
    result = subprocess.run([sys.executable, Path(__file__).parent / "fenced.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kernel", TILES)
def test_no_bank_conflicts(steered, kernel):
    m, n, k = TILES[kernel]
    mm(steered, int8(m, 2 * k), int8(n, 2 * k), kernel)
    (report,) = steered.take_reports()
    assert report["kernel"] == "int8_tiles"
    # A warp loads its 16 rows of a and its 16 columns of b, by 32 of K each, in four 8x8 matrices.
    assert report["matrix_loads"] >= 2 * (m + n) * k // 128
    assert report["matrix_conflicts"] == 0


def test_plans(emulated):
    """What is chosen on a device with 132 multiprocessors; larger ones get larger tiles, small M divides K."""
    names = emulated.int8_kernel_names()

    def plan(m, n, k, floats=True):
        kernel, splits, _ = emulated.int8_plan(m, n, k, floats=floats, device=0)
        return names[kernel], splits

    try:
        for architecture in (80, 86, 89, 100):
            emulated.configure(architecture=architecture, multiprocessors=132)
            assert [plan(m, 4096, 4096) for m in (0, 1, 4)] == [("gemv", 1)] * 3
            assert plan(1, 4096, 4096, floats=False) == ("skinny_32", 1)
            assert plan(4, 4096, 16384) == ("gemv", 1)
            assert plan(4, 4096, 16385) == ("skinny_32", 1)
            assert plan(16, 4096, 4096) == ("skinny_32", 1)
            assert plan(16, 768, 768) == ("skinny_8", 1)
            assert plan(17, 4096, 4096) == ("tile_64x64", 2)
            assert plan(64, 768, 768) == ("tile_64x64", 1)
            assert plan(64, 768, 3072) == ("tile_64x64", 6)
            assert plan(512, 4096, 4096) == ("tile_128x128", 1)
            assert plan(2048, 4096, 4096) == ("tile_128x256", 1)
        emulated.configure(architecture=75)
        with pytest.raises(ValueError, match=r"need compute capability 8\.0 or later, this device has 7\.5"):
            plan(1, 64, 64)
    finally:
        emulated.configure()


def test_refusals(emulated):
    """What only callers of the compiled module can get wrong."""
    a, out = int8(20, 64), torch.empty(20, 20, dtype=torch.int32)
    for kernel, message in (("gemv", "gemv does not take M=20"), ("skinny_8", "skinny_8 does not take M=20")):
        with pytest.raises(ValueError, match=message):
            emulated.int8_plan(20, 20, 64, floats=True, device=0, kernel=kernel)
    with pytest.raises(ValueError, match="there is no int8 kernel 10"):
        emulated.int8_plan(20, 20, 64, floats=True, device=0, kernel="fastest")
    with pytest.raises(ValueError, match=r"splits must be in \[1, 1\], got 2"):
        emulated.int8_plan(2, 20, 64, floats=True, device=0, kernel="gemv", splits=2)
    plan = emulated.int8_plan(20, 20, 64, floats=False, device=0, kernel="tile_64x64", splits=2)
    assert plan[2] == 2 * 20 * 20 * 4 + 128
    with pytest.raises(ValueError, match=f"workspace must have {plan[2]} bytes, got {plan[2] - 1}"):
        emulated.int8_mm(a, a, out, plan, workspace(plan[2] - 1))
    with pytest.raises(ValueError, match="workspace must be aligned to 16 bytes"):
        emulated.int8_mm(a, a, out, plan, workspace(plan[2] + 1)[1:])
    with pytest.raises(TypeError, match="workspace must be uint8"):
        emulated.int8_mm(a, a, out, plan, workspace(plan[2]).view(torch.int8))
    x, weight, weight_scale, bias = make(2, 20, 64)
    plan = emulated.int8_plan(2, 20, 64, floats=True, device=0)
    out = torch.empty(2, 20)
    with pytest.raises(TypeError, match="bias must be float32, bfloat16 or float16 here, got float64"):
        emulated.int8_linear(x, weight, weight_scale, bias.double(), out, "none", None, plan, workspace(plan[2]))
    packed = torch.zeros(1, 17, 64, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="not packed"):
        emulated.int8_linear(x, packed, weight_scale, bias, out, "none", None, plan, workspace(plan[2]))
