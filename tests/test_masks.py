"""Which weights stay: the masks of sparsify_'s configs."""

import dataclasses

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import convert
from layers import sparse
from torch import nn


class TestSparsity:
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.999])
    def test_the_smallest_go(self, sparsity):
        weight = torch.randn(30, 50)
        mask = convert.magnitude_mask(weight, sparsity)
        assert int(mask.sum()) == 1500 - round(sparsity * 1500)
        if sparsity > 0:
            assert weight[mask].abs().min() >= weight[~mask].abs().max()
        model = bm.sparsify_(nn.Sequential(nn.Linear(50, 30)), sparse(sparsity))
        assert model[0].nnz == 1500 - round(sparsity * 1500)

    def test_equal_weights_are_cut_at_the_exact_count(self):
        assert int(convert.magnitude_mask(torch.ones(10, 10), 0.37).sum()) == 63

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_what_sorting_gives(self, dtype):
        for count in (1, 7, 60):
            weight = torch.randint(-4, 5, (5, count)).to(dtype)
            weight[2, 0] = float("nan")
            weight[3, 0] = -float("inf")
            order = weight.abs().nan_to_num(float("inf"), float("inf")).flatten().argsort(descending=True, stable=True)
            for gone in range(5 * count):
                expected = torch.zeros(5 * count, dtype=torch.bool)
                expected[order[: 5 * count - gone]] = True
                mask = convert.magnitude_mask(weight, gone / (5 * count))
                assert torch.equal(mask.flatten(), expected), gone

    @pytest.mark.parametrize("k", [48, 50])
    def test_the_smallest_blocks_go(self, k):
        weight = torch.randn(30, k)
        mask, blocks = convert.block_mask(weight, 0.6), -(-k // 4)
        assert mask.shape == weight.shape
        groups = nn.functional.pad(mask, (0, -k % 4), value=True).view(30, blocks, 4)
        energy = nn.functional.pad(weight, (0, -k % 4)).view(30, blocks, 4).square().sum(-1)
        kept = groups[..., 0]
        assert torch.equal(groups.all(-1), groups.any(-1) if k % 4 == 0 else groups.all(-1))
        assert int(kept.sum()) == 30 * blocks - round(0.6 * 30 * blocks)
        assert energy[kept].min() >= energy[~kept].max()

    def test_none_keeps_the_zeros_there_are(self):
        linear, plain = nn.Linear(40, 20), nn.Linear(20, 20)
        with torch.no_grad():
            linear.weight[torch.rand(20, 40) < 0.7] = 0.0
        model = nn.Sequential(linear, plain)
        x = torch.randn(3, 40)
        expected = model(x)
        bm.sparsify_(model, sparse(None))
        assert model[0].nnz == int((linear.weight != 0).sum())
        assert model[1] is plain, "a layer without zeros would have grown"
        torch.testing.assert_close(model(x), expected)

    @pytest.mark.parametrize("config", [bm.UnstructuredSparseWeightConfig, bm.Int8BlockSparseWeightConfig])
    def test_bad_configs(self, config):
        for bad in (1.0, -0.1, 2, float("nan")):
            with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
                config(bad)
        for bad in ("half", True):
            with pytest.raises(TypeError, match="sparsity must be a number"):
                config(bad)
        with pytest.raises(TypeError, match="unexpected keyword"):
            config(sparseness=0.5)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config(0.5).sparsity = 0.6
