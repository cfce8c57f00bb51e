"""Large outputs on fresh memory are announced to the system (common/pages.h)."""

import re
import sys
from pathlib import Path

import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext.formats import csr, int8

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20


def advised(begin: int = 0, end: int = sys.maxsize) -> int:
    """Bytes between two addresses that the system was told to back with huge pages."""
    found, here = 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        area = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if area:
            here = max(0, min(end, int(area[2], 16)) - max(begin, int(area[1], 16)))
        elif line.startswith("VmFlags:") and "hg" in line.split():
            found += here
    return found


def int8_linear(x):
    return F.int8_linear(x, int8.pack(torch.ones(4096, 8, dtype=torch.int8)), torch.ones(4096))


def sparse_linear(x):
    return F.sparse_linear(x, *csr.pack(torch.eye(4096, 8)), out_features=4096, panel=csr.PANEL)


def int8_conv2d(x):
    return F.int8_conv2d(x.view(64, 8, 8, 8), torch.ones(2560, 8, 1, 1, dtype=torch.int8), torch.ones(2560))


def quantize_rows(x):
    return F.quantize_rows(x.new_ones(4096, 10000))[0]


@pytest.mark.skipif(sys.platform != "linux" or not THP.exists(), reason="needs Linux with transparent huge pages")
@pytest.mark.parametrize("op", [int8_linear, sparse_linear, int8_conv2d, quantize_rows])
def test_large_outputs_are_announced_and_small_ones_not(op):
    """Large: beyond what malloc ever takes from its heap, so that the memory is the output's alone."""
    x = torch.randn(4096, 8)
    large = op(x)
    size = large.numel() * large.element_size()
    assert size >= 36 * MIB
    assert advised(large.data_ptr(), large.data_ptr() + size) >= size - 4 * MIB
    before = advised()
    small = [int8_linear(x[:240]) for _ in range(8)]  # a little below 4 MiB
    assert advised() <= before
    del small
