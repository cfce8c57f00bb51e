"""Right kernels give the same results under every schedule; without any one of their waits they do not."""

import pytest
import torch
from conftest import SCHEDULES


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


RUNS = {
    "reverse": reverse,
    "rotate": lambda kernels: rotated(kernels, "rotate", 100, 5),
    "rotate_in_warp": lambda kernels: rotated(kernels, "rotate_in_warp", 32, 3),
    "sum_stages": sum_stages,
    "hand_over": hand_over,
}
SITES = {"reverse": 1, "rotate": 2, "rotate_in_warp": 2, "sum_stages": 2, "hand_over": 4}


@pytest.mark.parametrize("name", RUNS)
def test_right_results_whatever_the_schedule(kernels, schedule, name):
    RUNS[name](kernels)


@pytest.mark.parametrize("name", RUNS)
def test_every_wait_is_missed(kernels, name):
    kernels.configure()
    kernels.take_reports()
    RUNS[name](kernels)
    (report,) = kernels.take_reports()
    assert report["kernel"] == name
    assert len(report["sites"]) == SITES[name], report["sites"]
    try:
        for site, what in report["sites"]:
            seen = []
            for schedule, seed in SCHEDULES:
                kernels.configure(schedule=schedule, seed=seed, skip=site)
                try:
                    RUNS[name](kernels)
                except (AssertionError, RuntimeError):
                    seen.append(schedule)
            assert seen, f"nothing misses {what} at {site}"
    finally:
        kernels.configure()


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


@pytest.mark.parametrize(("stride", "conflicts"), [(128, 28), (64, 12), (32, 4), (16, 0), (144, 0), (80, 0)])
def test_bank_conflicts_are_counted(kernels, stride, conflicts):
    kernels.take_reports()
    kernels.count_conflicts(stride)
    (report,) = kernels.take_reports()
    assert (report["matrix_loads"], report["bank_conflicts"]) == (4, conflicts)
