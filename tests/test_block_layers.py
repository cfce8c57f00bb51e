"""BlockSparseLinear and SemiSparseLinear: their state, and what their configs choose."""

import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.formats import two_four

pytestmark = pytest.mark.usefixtures("one_thread")


class TestBlockSparseLinear:
    def test_state_with_other_blocks_can_be_loaded(self):
        linear = torch.nn.Linear(70, 40)
        layer, x = bm.nn.BlockSparseLinear.from_dense(linear, blocksize=64), torch.randn(3, 70)
        fresh = bm.nn.BlockSparseLinear(70, 40)
        parameter = fresh.values
        fresh.load_state_dict(layer.state_dict())
        assert fresh.values is parameter
        assert fresh.blocksize == 64
        assert torch.equal(fresh(x), layer(x))
        assert "stored=2, blocksize=64" in repr(layer)
        assert layer.nnz == 2 * 64 * 64

    def test_bad_indices_change_nothing(self):
        state = bm.nn.BlockSparseLinear.from_dense(torch.nn.Linear(70, 40)).state_dict()
        for name, value, match in (
            ("crow", torch.tensor([0, 4, 3], dtype=torch.int32), "crow must run from 0 to 6, got 0 to 3"),
            ("crow", torch.tensor([0, 7, 6], dtype=torch.int32), "crow must not decrease"),
            ("crow", torch.tensor([0, 6], dtype=torch.int32), r"crow must be int32 \[3\], got torch.int32 \[2\]"),
            ("col", state["col"] + 1, r"col must be in \[0, 3\)"),
            ("col", state["col"] * 0, "col must increase within a block row"),
            ("values", state["values"][:-1], "values must have 6 entries, one for each of col, got 5"),
            ("values", state["values"][:, :8, :8], r"values must be floating point \[blocks, S, S\]"),
            ("values", state["values"].int(), "values must be floating point"),
        ):
            fresh = bm.nn.BlockSparseLinear(70, 40)
            with pytest.raises(RuntimeError, match=match):
                fresh.load_state_dict({**state, name: value})
            assert fresh.values.numel() == fresh.col.numel() == 0

    def test_the_config_keeps_the_strongest_blocks(self):
        model = torch.nn.Sequential(torch.nn.Linear(64, 48))
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(48, 64))
            model[0].weight[:16, :16] *= 0.01
            model[0].weight[32:, 48:] *= 0.02
        weight = model[0].weight.detach().clone()
        bm.sparsify_(model, bm.BlockSparseWeightConfig(16, 2 / 12, rows=()))
        kept = weight.clone()
        kept[:16, :16] = 0
        kept[32:, 48:] = 0
        assert torch.equal(model[0].weight, kept)

    def test_the_config_without_sparsity_wants_a_gain(self):
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        with torch.no_grad():
            model[1].weight[:32] = 0
        bm.sparsify_(model, bm.BlockSparseWeightConfig(rows=()))
        assert type(model[0]) is torch.nn.Linear
        assert model[1].col.shape == (2,)
        with pytest.warns(UserWarning, match=r"0: it would not get smaller \(4 of 4 blocks of 32 are not zero\)"):
            bm.sparsify_(torch.nn.Sequential(torch.nn.Linear(64, 64)), bm.BlockSparseWeightConfig(rows=()))
        for bad, error in ((8, ValueError), ("32", TypeError)):
            with pytest.raises(error, match="blocksize must be 16, 32 or 64"):
                bm.BlockSparseWeightConfig(bad)


class TestSemiSparseLinear:
    def test_bytes(self):
        layer = bm.nn.SemiSparseLinear(256, 128, bias=False)
        resident = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
        assert resident == 256 * 128 * 2 + 256 * 128 // 8

    def test_bad_indices_change_nothing(self):
        linear = torch.nn.Linear(40, 33)
        state = bm.nn.SemiSparseLinear.from_dense(linear, bm.convert.two_four_mask(linear.weight)).state_dict()
        equal = torch.full_like(state["index"], 0b01010101)
        falling = torch.full_like(state["index"], 0b00010001)
        for name, value, match in (
            ("index", equal, "index must increase within a group of four"),
            ("index", falling, "index must increase within a group of four"),
            ("index", state["index"][:1], r"index must be uint8 \[2, 2, 32, 4\], got torch.uint8 \[1, 2, 32, 4\]"),
            ("values", state["values"][:1], "size mismatch"),
        ):
            fresh = bm.nn.SemiSparseLinear(40, 33)
            with pytest.raises(RuntimeError, match=match):
                fresh.load_state_dict({**state, name: value})
            assert fresh.values.eq(0).all()

    def test_a_fresh_layer_is_zero_and_valid(self):
        layer = bm.nn.SemiSparseLinear(40, 33, bias=False)
        assert two_four.invalid(layer.index, 33, 40) is None
        assert layer(torch.randn(3, 40)).eq(0).all()

    def test_the_config(self):
        model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Linear(3, 5))
        weight = model[0].weight.detach().clone()
        with torch.no_grad():
            model[1].weight[:, 0] = 0
        bm.sparsify_(model, bm.SemiSparseWeightConfig(rows=()))  # not pruned: the second is 2:4 as it is
        assert type(model[0]) is torch.nn.Linear
        assert type(model[1]) is bm.nn.SemiSparseLinear
        with pytest.warns(UserWarning, match=r"0: its weight is not 2:4: row 0, group 0 \(columns 0 to 3\) keeps 4"):
            bm.sparsify_(torch.nn.Sequential(torch.nn.Linear(6, 3)), bm.SemiSparseWeightConfig(rows=()))
        bm.sparsify_(model, bm.SemiSparseWeightConfig(prune=True, rows=()))
        kept = weight.clone()
        for row in range(3):
            for column in weight[row, :4].abs().argsort()[:2]:
                kept[row, column] = 0
        assert torch.equal(model[0].weight, kept)
        ties = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 2.0, math.nan, math.inf], [0.0, 0.0, 0.0, 3.0]])
        assert bm.convert.two_four_mask(ties).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
        assert bm.convert.two_four_mask(torch.zeros(1, 5)).int().tolist() == [[1, 1, 0, 0, 1]]
        with pytest.raises(TypeError, match="prune must be True or False, got 1"):
            bm.SemiSparseWeightConfig(1)


@pytest.mark.parametrize("layer", [bm.nn.BlockSparseLinear, bm.nn.SemiSparseLinear])
def test_an_activation_is_refused_where_no_epilogue_computes_it(layer):
    one = layer(32, 32)
    assert one.activation == "none"
    with pytest.raises(AttributeError):
        one.activation = "relu"
