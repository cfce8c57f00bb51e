import math
from pathlib import Path

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext.formats import block, csr, int8
from sparse_cases import PANELS, SPARSITIES, int8_block_weight, sparse_weight

SIZES = ((0, 0), (0, 7), (7, 0), (1, 1), (3, 4), (5, 127), (6, 128), (7, 129), (64, 257), (65, 300), (130, 66))


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_csr_round_trip(n, k, panel, sparsity):
    weight = sparse_weight(n, k, sparsity)
    values, crow, col = csr.pack(weight, panel=panel)
    assert values.dtype == weight.dtype
    assert crow.dtype == torch.int32
    assert crow.shape == (-(-k // panel) * n + 1,)
    assert col.dtype == torch.uint8
    assert values.shape == col.shape == (int((weight != 0).sum()),)
    assert col.numel() == 0 or int(col.max()) < panel
    assert torch.equal(csr.unpack(values, crow, col, n, k, panel), weight)
    assert torch.equal(csr.mask_of(crow, col, n, k, panel), weight != 0)


@pytest.mark.parametrize(("n", "k", "panel"), [*((n, k, 128) for n, k in SIZES), (1100, 40, 16), (513, 300, 256)])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_sorted_rows_round_trip(n, k, panel, sparsity):
    weight = sparse_weight(n, k, sparsity)
    packed = csr.pack(weight, panel=panel)
    values, crow, col, order = csr.sort_rows(*packed, n)
    assert torch.equal(csr.unpack(values, crow, col, n, k, panel, order), weight)
    assert torch.equal(csr.mask_of(crow, col, n, k, panel, order), weight != 0)
    assert order.dtype == torch.int32
    assert [t.dtype for t in (values, crow, col)] == [t.dtype for t in packed]
    for after, before in zip(csr.unsort_rows(values, crow, col, n, order), packed, strict=True):
        assert torch.equal(after, before)
    block = _reference.order_rows(n)
    assert block <= 512
    assert n == 0 or -(-n // block) in (1, 2 * -(-n // 1024), 2 * -(-n // 1024) - 1)
    for lengths in crow.diff().view(-1, n) if n else ():
        for start in range(0, n, block):
            assert (lengths[start : start + block].diff() >= 0).all(), "a block's rows are sorted by length"
    in_order = csr.rows_in_order(n, -(-k // panel))
    assert torch.equal(csr.unpack(*packed, n, k, panel, in_order), weight)


def test_csr_order_by_hand():
    weight = torch.tensor([[1.0, 0.0, 2.0, 3.0, 0.0], [0.0, 4.0, 0.0, 5.0, 6.0]])
    values, crow, col = csr.pack(weight, panel=2)
    assert values.tolist() == [1.0, 4.0, 2.0, 3.0, 5.0, 6.0]
    assert col.tolist() == [0, 1, 0, 1, 1, 0]
    assert crow.tolist() == [0, 1, 2, 4, 5, 5, 6]


def test_csr_stores_what_the_mask_says():
    weight = torch.tensor([[0.0, math.nan, 2.0], [math.inf, -0.0, 1.0]])
    values, crow, col = csr.pack(weight)
    assert torch.equal(csr.mask_of(crow, col, 2, 3), torch.tensor([[False, True, True], [True, False, True]]))
    assert torch.equal(csr.unpack(values, crow, col, 2, 3).nan_to_num(nan=7.0), weight.nan_to_num(nan=7.0))
    mask = torch.tensor([[True, False, False], [False, True, False]])
    values, crow, col = csr.pack(weight, mask)
    assert values.tolist() == [0.0, 0.0]
    assert values.signbit().tolist() == [False, True]
    assert torch.equal(csr.mask_of(crow, col, 2, 3), mask)


def test_csr_of_strided_and_half_weights():
    weight = sparse_weight(40, 60, 0.5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for w in (weight.to(dtype).t(), weight.to(dtype)[::2, ::3]):
            values, crow, col = csr.pack(w, panel=16)
            assert values.dtype == dtype
            assert torch.equal(csr.unpack(values, crow, col, *w.shape, 16), w)


def test_csr_refuses():
    with pytest.raises(ValueError, match=r"weight must be \[N,K\], got shape \[3\]"):
        csr.pack(torch.ones(3))
    for panel in (0, 257):
        with pytest.raises(ValueError, match=rf"panel must be in \[1, 256\], got {panel}"):
            csr.pack(torch.ones(3, 3), panel=panel)
    with pytest.raises(ValueError, match=r"mask must be bool \[3, 3\], got torch.bool \[3, 2\]"):
        csr.pack(torch.ones(3, 3), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool \[3, 3\], got torch.uint8"):
        csr.pack(torch.ones(3, 3), torch.ones(3, 3, dtype=torch.uint8))


def test_panel_for_density():
    assert csr.panel_for(1.0) == csr.panel_for(0.2) == 128
    assert csr.panel_for(0.1) == csr.panel_for(0.0) == 256


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_block_round_trip(n, k, panel, sparsity):
    weight = int8_block_weight(n, k, sparsity)
    values, crow, col, row_sum = block.pack(weight, panel)
    assert values.dtype == torch.int8
    assert values.shape == (col.shape[0], 4)
    assert torch.equal(row_sum, weight.sum(1, dtype=torch.int32))
    assert torch.equal(block.unpack(values, crow, col, n, k, panel), weight)
    assert values.numel() == 0 or (values != 0).any(1).all()  # no empty block is stored


def test_block_refuses():
    for bad in (torch.ones(2, 2), torch.ones(4, dtype=torch.int8)):
        with pytest.raises(TypeError, match=r"weight_q must be int8 \[N,K\]"):
            block.pack(bad)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_int8_round_trip(n, k):
    weight = int8_block_weight(n, k, 0.1)
    packed = int8.pack(weight)
    assert packed.shape == (-(-n // 64), -(-k // 4) + 1, 64, 4)
    assert torch.equal(int8.unpack(packed, n, k), weight)
    assert torch.equal(_reference.unpack_int8(packed, n, k), weight)
    sums = packed[:, 0].contiguous().view(torch.int32).flatten()[:n]
    assert torch.equal(sums, 128 * weight.sum(1, dtype=torch.int32))


def _page_flags(address):
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if "-" in word:
            first, end = (int(part, 16) for part in word.split("-"))
        elif word == "VmFlags:" and first <= address < end:
            return line.split()[1:]
    return []


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no huge pages to ask for"
)
def test_large_packed_weights_ask_for_huge_pages():
    packed = int8.pack(torch.ones(4096, 2048, dtype=torch.int8))
    assert "hg" in _page_flags(packed.data_ptr() + packed.nbytes // 2)


def test_int8_refuses():
    for bad in (torch.ones(2, 2), torch.ones(4, dtype=torch.int8)):
        with pytest.raises(TypeError, match=r"weight_q must be int8 \[N,K\]"):
            int8.pack(bad)
