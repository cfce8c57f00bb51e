"""Square blocks and 2:4 as formats: packing, unpacking, what they refuse."""

import math
from itertools import combinations, product

import pytest
import torch
from bigmodel_ext.formats import block_sparse, two_four
from sparse_cases import SPARSITIES, square_block_weight, two_four_weight

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = (16, 32, 64)


class TestSquareBlocks:
    @pytest.mark.parametrize(("n", "k"), [(0, 0), (0, 7), (7, 0), (1, 1), (16, 33), (65, 300), (130, 64)])
    @pytest.mark.parametrize(("size", "sparsity"), list(product(SIZES, SPARSITIES)))
    def test_round_trip(self, n, k, size, sparsity):
        weight = square_block_weight(n, k, sparsity, size)
        values, crow, col = block_sparse.pack(weight, blocksize=size)
        assert values.shape == (col.shape[0], size, size)
        assert values.is_contiguous()
        assert block_sparse.invalid(crow, col, n, k, size) is None
        assert torch.equal(block_sparse.unpack(values, crow, col, n, k), weight)
        assert values.numel() == 0 or (values != 0).flatten(1).any(1).all()  # no empty block is stored

    def test_by_hand(self):
        weight = torch.zeros(20, 40)
        weight[1, 2], weight[3, 35], weight[17, 16], weight[19, 31] = 1.0, 2.0, 3.0, 4.0
        values, crow, col = block_sparse.pack(weight, blocksize=16)
        assert crow.tolist() == [0, 2, 3]
        assert col.tolist() == [0, 2, 1]
        found = {tuple(i.tolist()): values[tuple(i)].item() for i in values.nonzero()}
        assert found == {(0, 2, 1): 1.0, (1, 3, 3): 2.0, (2, 0, 1): 3.0, (2, 15, 3): 4.0}

    def test_mask_decides(self):
        weight, mask = torch.ones(20, 20), torch.zeros(20, 20, dtype=torch.bool)
        mask[5, 17] = True
        values, crow, col = block_sparse.pack(weight, mask, 16)
        assert torch.equal(block_sparse.unpack(values, crow, col, 20, 20), mask.float())
        weight[0, 0] = math.nan
        values, crow, col = block_sparse.pack(torch.where(torch.isnan(weight), weight, 0.0), blocksize=16)
        assert col.tolist() == [0]
        assert values[0, 0, 0].isnan()

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"weight must be \[N,K\], got shape \[3\]"):
            block_sparse.pack(torch.ones(3))
        for size, error in ((8, ValueError), (0, ValueError), (True, TypeError), (16.0, TypeError)):
            with pytest.raises(error, match=rf"blocksize must be 16, 32 or 64, got {size}"):
                block_sparse.pack(torch.ones(3, 3), blocksize=size)
        with pytest.raises(ValueError, match=r"mask must be bool \[3, 3\], got torch.uint8"):
            block_sparse.pack(torch.ones(3, 3), torch.ones(3, 3, dtype=torch.uint8))


class TestTwoFour:
    @pytest.mark.parametrize(("n", "k"), [(0, 0), (0, 7), (7, 0), (1, 1), (3, 5), (32, 32), (33, 66), (65, 130)])
    @pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
    def test_round_trip(self, n, k, sparsity):
        weight = two_four_weight(n, k, sparsity)
        values, index = two_four.pack(weight)
        assert values.shape == (-(-n // 32), -(-k // 32), 8, 2, 32)
        assert two_four.invalid(index, n, k) is None
        assert torch.equal(two_four.unpack(values, index, n, k), weight)
        assert torch.equal(two_four.mask_of(index, n, k) & (weight != 0), weight != 0)
        assert int((values != 0).sum()) == int((weight != 0).sum())

    def test_by_hand(self):
        weight = torch.zeros(2, 8)
        weight[0, 1], weight[0, 3], weight[1, 6] = 1.0, 2.0, 3.0
        values, index = two_four.pack(weight)
        assert values[0, 0, :2, :, :2].tolist() == [[[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]]
        # Row 0: positions 1, 3 and 0, 1. Row 1: 0, 1 and 0, 2 (the zero first).
        assert index[0, 0, :2, 0].tolist() == [0b01_00_11_01, 0b10_00_01_00]

    def test_masks(self):
        for count in range(3):
            for kept in combinations(range(4), count):
                mask = torch.zeros(1, 4, dtype=torch.bool)
                mask[0, list(kept)] = True
                values, index = two_four.pack(torch.full((1, 4), 5.0), mask)
                assert torch.equal(two_four.unpack(values, index, 1, 4), 5.0 * mask)
        mask = torch.zeros(5, 9, dtype=torch.bool)
        mask[3, 5:8] = True
        with pytest.raises(
            ValueError, match=r"mask is not 2:4: row 3, group 1 \(columns 4 to 7\) keeps 3 of 4, at most 2 can be"
        ):
            two_four.pack(torch.ones(5, 9), mask)
        with pytest.raises(ValueError, match=r"row 0, group 0 .* keeps 4 of 4"):
            two_four.pack(torch.ones(5, 9))
        assert two_four.pack(torch.ones(5, 2))[0].sum() == 10
        with pytest.raises(ValueError, match=r"weight must be \[N,K\], got shape \[3\]"):
            two_four.pack(torch.ones(3))
        with pytest.raises(ValueError, match=r"mask must be bool \[5, 9\], got torch.uint8"):
            two_four.pack(torch.ones(5, 9), mask.to(torch.uint8))

    def test_nan_is_stored(self):
        weight = torch.tensor([[0.0, math.nan, 0.0, 1.0]])
        assert two_four.unpack(*two_four.pack(weight), 1, 4)[0, 1].isnan()
