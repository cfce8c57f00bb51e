"""What the emulator says about wrong kernels: kernel, block, thread and source line."""

import re

import pytest
import torch
from emulation import SANITIZED

MISTAKES = {
    "divergent_barrier": r"divergent barrier: other threads of the block wait at emulator/kernels.cu:\d+",
    "deadlock": r"deadlock: no thread can go on\n.*thread \(0, 0, 0\): bar.sync at \S+:\d+\n.*\(32, 0, 0\): returned",
    "part_of_a_warp": r"a named barrier was reached by a part of warp 0 only",
    "divergent_lanes": r"divergence: __shfl_sync meets __shfl_sync at emulator/kernels.cu:\d+",
    "absent_lane": r"a shuffle from lane 20, which is not in the mask",
    "returned_lane": r"deadlock: no thread can go on\n.*thread \(0, 0, 0\): __syncwarp at \S+\n.*\(7, 0, 0\): returned",
    "poison": r"thread \(0, 0, 0\) at emulator/kernels.cu:\d+: reads poison: shared address 1024 has not been written",
    "waits_too_little": r"reads poison: shared address 1040 has not been written, or is being written",
    "beyond": r"thread \(5, 0, 0\) at \S+: out of bounds: 16 bytes at shared address 2048",
    "silently_beyond": r"out of bounds: shared address 2048, between the variables, was written",
    "misaligned": r"shared address 1032 is not a multiple of 16",
    "twice": r"arrives twice before barrier 4 is passed",
    "disorder": r"mma.sp: positions 1, 0 of row 10 are not in order",
}
MISTAKES_ON_SM90 = {
    "unfenced_store": r"an asynchronous read of shared address 1024, which was written without fence.proxy.async",
    "no_wait_for_store": r"returns while a tensor store still reads shared memory",
    "waits_for_one_store": r"returns while a tensor store still reads shared memory",
    "unknown_mbarrier": r"a copy reports to an mbarrier that it cannot know: fence.mbarrier_init is missing",
    "no_mbarrier": r"there is no mbarrier at shared address 1024",
    "overwritten_mbarrier": r"the mbarrier at shared address 1024 has been overwritten",
    "wrong_bytes": r"deadlock: no thread can go on\n.*thread \(0, 0, 0\): mbarrier.try_wait at \S+:\d+",
    "reads_before_wait": r"reads poison: shared address 2048 has not been written, or is being written",
    "misplaced_load": r"shared address 2064 is not a multiple of 128",
    "no_wgmma_fence": r"wgmma: no wgmma.fence since the last group",
    "one_wgmma_fence": r"wgmma: no wgmma.fence since the last group",
    "different_products": r"wgmma: the warps of the warpgroup do not ask for the same product",
    "unpublished_operands": r"an asynchronous read of shared address 1024, which was written without fence.proxy",
}


def check(message, name, pattern, schedule):
    assert message.startswith(f"{name}, block (0, 0, 0)")
    if schedule[0] == "ascending":  # under others another thread may be the first to notice
        assert re.search(pattern, message), message


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported(kernels, schedule, name):
    if name == "silently_beyond" and SANITIZED:
        pytest.skip("AddressSanitizer ends the process, with the kernel's line")
    with pytest.raises(RuntimeError) as error:
        kernels.wrong(name)
    check(str(error.value), name, MISTAKES[name], schedule)


@pytest.mark.parametrize("name", MISTAKES_ON_SM90)
def test_mistakes_on_sm90_are_reported(kernels, schedule, name):
    with pytest.raises(RuntimeError) as error:
        kernels.wrong_on_sm90(name)
    check(str(error.value), name, MISTAKES_ON_SM90[name], schedule)


def test_settings_are_checked(kernels):
    with pytest.raises(ValueError, match="schedule must be ascending, descending or random, got 'up'"):
        kernels.configure(schedule="up")
    with pytest.raises(RuntimeError, match="invalid configuration: block of 2000 threads"):
        kernels.reverse(2000, 0, 0)


def test_accumulators_are_garbage_until_the_wait(kernels, schedule):
    before, after = torch.zeros(2, 128, dtype=torch.int32)
    kernels.peek(before.data_ptr(), after.data_ptr())
    assert (before == 0x7FC1F00D).all()
    assert (after == 32).all()
