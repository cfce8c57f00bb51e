"""Right kernels give the same results under every schedule; without any one of their waits they do not."""

import pytest
import torch
from emulation import sites_of, unmissed


def rotated(kernels, name, threads, steps):
    values = torch.arange(threads, dtype=torch.int32) * 7
    out = torch.zeros_like(values)
    arguments = (steps,) if name == "rotate_in_warp" else (threads, steps)
    getattr(kernels, name)(*arguments, values.data_ptr(), out.data_ptr())
    assert torch.equal(out, values.roll(-steps)), out


def reverse(kernels):
    values = torch.randint(1 << 30, (1024,), dtype=torch.int32)
    out = torch.zeros_like(values)
    kernels.reverse(1024, values.data_ptr(), out.data_ptr())
    assert torch.equal(out, values.flip(0)), out


def sum_stages(kernels, tiles=9):
    values = torch.randint(100, (tiles, 64, 4), dtype=torch.int32)
    out = torch.zeros(64, dtype=torch.int32)
    kernels.sum_stages(tiles, values.data_ptr(), out.data_ptr())
    weighted = values.sum(2) * torch.arange(1, tiles + 1)[:, None]
    assert torch.equal(out.long(), weighted.sum(0).roll(-32)), out


def hand_over(kernels, rounds=5):
    out = torch.zeros(rounds, 32, dtype=torch.int32)
    kernels.hand_over(rounds, out.data_ptr())
    assert torch.equal(out, torch.arange(rounds)[:, None] * 100 + torch.arange(31, -1, -1)), out


def sum_tiles(kernels, tiles=7):
    values = torch.randint(1000, (tiles, 32), dtype=torch.int32)
    out = torch.zeros(32, dtype=torch.int32)
    kernels.sum_tiles(tiles, values.data_ptr(), out.data_ptr())
    assert torch.equal(out, (values * torch.arange(1, tiles + 1)[:, None]).sum(0).int()), out


def product(kernels, kind, tiles=5):
    if kind == "s8":
        a, b = (torch.randint(-128, 128, (64, 128 * tiles), dtype=torch.int8) for _ in "ab")
    else:
        a, b = (torch.randint(-4, 5, (64, 64 * tiles)).bfloat16() for _ in "ab")
    out = torch.zeros(64, 64, dtype=torch.int32 if kind == "s8" else torch.float32)
    getattr(kernels, f"product_{kind}")(tiles, a.data_ptr(), b.data_ptr(), out.data_ptr())
    assert torch.equal(out.double(), a.double() @ b.double().T), out


RUNS = {
    "reverse": reverse,
    "rotate": lambda kernels: rotated(kernels, "rotate", 100, 5),
    "rotate_in_warp": lambda kernels: rotated(kernels, "rotate_in_warp", 32, 3),
    "sum_stages": sum_stages,
    "hand_over": hand_over,
    "sum_tiles": sum_tiles,
    "product_s8": lambda kernels: product(kernels, "s8"),
    "product_bf16": lambda kernels: product(kernels, "bf16"),
}
SITES = {
    "reverse": 1,
    "rotate": 2,
    "rotate_in_warp": 2,
    "sum_stages": 2,
    "hand_over": 4,
    "sum_tiles": 6,
    "product_s8": 12,
    "product_bf16": 12,
}


def order(kernels, schedule, seed=0):
    kernels.configure(schedule=schedule, seed=seed)
    count, out = torch.zeros(1, dtype=torch.int32), torch.zeros(100, dtype=torch.int32)
    kernels.order(100, count.data_ptr(), out.data_ptr())
    kernels.configure()
    assert out.sort().values.tolist() == list(range(100))
    return out.tolist()


def test_schedules_are_what_they_say(kernels):
    assert order(kernels, "ascending") == list(range(100))
    assert order(kernels, "descending") == list(range(99, -1, -1))
    assert order(kernels, "random", 1) == order(kernels, "random", 1)
    assert len({tuple(order(kernels, "random", seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("name", RUNS)
def test_right_results_whatever_the_schedule(kernels, schedule, name):
    RUNS[name](kernels)


@pytest.mark.parametrize("name", RUNS)
def test_every_wait_is_missed(kernels, name):
    kernels.configure()
    found = sites_of(kernels, lambda: RUNS[name](kernels))
    assert len(found) == SITES[name], found
    assert not unmissed(kernels, lambda: RUNS[name](kernels))


def test_a_barrier_without_need_is_told(kernels):
    kernels.configure()
    values = torch.arange(64, dtype=torch.int32)

    def run():
        out = torch.zeros_like(values)
        kernels.reverse_twice(64, values.data_ptr(), out.data_ptr())
        assert torch.equal(out, values.flip(0))

    assert len(sites_of(kernels, run)) == 2
    ((site, what),) = unmissed(kernels, run)
    assert what == "__syncthreads"
    assert site.startswith("emulator/kernels.cu:")


def test_threads_may_return_before_a_barrier(kernels, schedule):
    out = torch.zeros(100, dtype=torch.int32)
    kernels.early_return(100, out.data_ptr())
    assert torch.equal(out, torch.where(torch.arange(100) % 3 == 0, 0, 66).int())


def test_collectives(kernels, schedule):
    out = torch.zeros(32, 12, dtype=torch.int32)
    kernels.collectives(out.data_ptr())
    every_fifth = sum(1 << lane for lane in range(0, 32, 5))
    for lane, row in enumerate(out.tolist()):
        half = lane % 16
        assert row[:5] == [
            15,
            (lane // 8 * 8 + 1) * 3,
            lane ^ 3,
            lane + 4 if lane < 28 else lane,
            lane - 4 if half >= 4 else lane,
        ]
        assert row[5:9] == [every_fifth, 2, 0, 496]
        assert row[9] == (15 - lane if lane < 16 else 16)
        assert row[10] & 0xFFFFFFFF == 0xFF << (lane // 8 * 8)
        assert row[11] == 107


@pytest.mark.parametrize(
    ("stride", "conflicts", "of_pairs"), [(128, 28, 12), (64, 12, 12), (32, 4, 4), (16, 0, 0), (144, 0, 0), (80, 0, 0)]
)
def test_bank_conflicts_are_counted(kernels, schedule, stride, conflicts, of_pairs):
    kernels.take_reports()
    kernels.count_conflicts(stride)
    (report,) = kernels.take_reports()
    assert (report["matrix_loads"], report["matrix_conflicts"]) == (4, conflicts)
    assert (report["shared_accesses"], report["shared_conflicts"]) == (16, conflicts + 3 * of_pairs)
