"""What the emulator says about wrong kernels: kernel, block, thread and source line."""

import re

import pytest

MISTAKES = {
    "divergent_barrier": r"divergent barrier: other threads of the block wait at emulator/kernels.cu:\d+",
    "deadlock": r"deadlock: no thread can go on\n.*thread \(0, 0, 0\): bar.sync at \S+:\d+\n.*\(32, 0, 0\): returned",
    "part_of_a_warp": r"a named barrier was reached by a part of warp 0 only",
    "divergent_lanes": r"divergence: __shfl_sync meets __shfl_sync at emulator/kernels.cu:\d+",
    "absent_lane": r"a shuffle from lane 20, which is not in the mask",
    "returned_lane": r"deadlock: no thread can go on\n.*thread \(0, 0, 0\): __syncwarp at \S+\n.*\(7, 0, 0\): returned",
    "poison": r"thread \(0, 0, 0\) at emulator/kernels.cu:\d+: reads poison: shared address 1024 has not been written",
    "beyond": r"thread \(5, 0, 0\) at \S+: out of bounds: 16 bytes at shared address 2048",
    "silently_beyond": r"out of bounds: shared address 2048, between the variables, was written",
    "misaligned": r"shared address 1032 is not a multiple of 16",
    "twice": r"arrives twice before barrier 4 is passed",
    "disorder": r"mma.sp: positions 1, 0 of row 10 are not in order",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported(kernels, schedule, name):
    with pytest.raises(RuntimeError) as error:
        kernels.wrong(name)
    message = str(error.value)
    assert message.startswith(f"{name}, block (0, 0, 0)")
    if schedule[0] == "ascending":
        assert re.search(MISTAKES[name], message), message


def test_settings_are_checked(kernels):
    with pytest.raises(ValueError, match="schedule must be ascending, descending or random, got 'up'"):
        kernels.configure(schedule="up")
    with pytest.raises(RuntimeError, match="invalid configuration: block of 2000 threads"):
        kernels.reverse(2000, 0, 0)
