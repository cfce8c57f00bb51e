"""quantize_ and sparsify_ on models with convolutions."""

import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import convert
from convs import Net, dense_conv, image
from layers import tensors
from torch import nn

INT8, SPARSE = bm.Int8DynamicActivationInt8WeightConfig(rows=()), bm.UnstructuredSparseWeightConfig(0.6, rows=())


class TestConversion:
    @pytest.mark.parametrize(
        ("apply", "cls"),
        [
            (lambda m, f=None: bm.quantize_(m, INT8, f), bm.nn.Int8Conv2d),
            (lambda m, f=None: bm.sparsify_(m, SPARSE, f), bm.nn.SparseConv2d),
        ],
    )
    def test_all_convs_and_linears(self, apply, cls):
        model, x = Net(), torch.randn(2, 3, 15, 15)
        expected = model(x)
        apply(model)
        assert {fqn for fqn, m in model.named_modules() if type(m) is cls} == {"stem.0", "depth", "point"}
        assert type(model.reflect) is nn.Conv2d
        y = model(x)
        if cls is bm.nn.Int8Conv2d:
            assert (y - expected).abs().max() < 0.1 * expected.abs().max()
        else:
            assert model.point.nnz == 16 * 70 - round(0.6 * 16 * 70)
        rows = {row.fqn: row for row in bm.explain(model, batch=1).layers}
        assert rows["reflect"].reason == "its padding_mode is 'reflect'"
        for name in ("stem.0", "depth", "point"):
            layer = model.get_submodule(name)
            assert rows[name].converted
            assert rows[name].kernel.startswith(("cpu/int8_conv2d/", "cpu/sparse_conv2d/"))
            assert rows[name].bytes == sum(t.numel() * t.element_size() for t in tensors(layer).values())
            assert rows[name].gain > 0
        assert rows["point"].dense_bytes == 4 * 70 * 17
        with pytest.raises(RuntimeError, match=r"not used for reflect \(its padding_mode is 'reflect'\)$"):
            bm.explain(model, strict=True, batch=1)
        apply(model)  # again changes nothing
        assert type(model.point) is cls

    def test_a_filter(self):
        model = bm.quantize_(Net(), INT8, lambda m, fqn: fqn == "point")
        assert [fqn for fqn, m in model.named_modules() if type(m) is bm.nn.Int8Conv2d] == ["point"]

    def test_what_stays_dense(self):
        class Mine(nn.Conv2d):
            pass

        hooked = nn.Conv2d(3, 4, 1)
        hooked.register_forward_hook(lambda *a: None)
        model = nn.ModuleDict(
            {"mine": Mine(3, 4, 1), "hooked": hooked, "wide": nn.Conv2d(3, 4, 1).double(), "one": nn.Conv1d(3, 4, 1)}
        )
        with pytest.warns(UserWarning, match=r"Mine is a subclass of nn\.Conv2d"):
            bm.quantize_(model, INT8)
        assert not any(isinstance(m, (bm.nn.Int8Conv2d, bm.nn.SparseConv2d)) for m in model.modules())
        with pytest.raises(ValueError, match=r"itself an nn\.Conv2d"):
            bm.quantize_(nn.Conv2d(3, 4, 1), INT8)

    def test_blocks_leave_convs_with_a_reason(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1))
        with pytest.warns(UserWarning, match="0: blocks are implemented for linear layers only"):
            bm.sparsify_(model, bm.Int8BlockSparseWeightConfig(0.5, rows=()))
        assert type(model[0]) is nn.Conv2d

    def test_none_keeps_the_zeros_there_are(self):
        pruned, plain = dense_conv(sparsity=0.8), nn.Conv2d(70, 3, 1)
        model, x = nn.Sequential(pruned, plain), image()
        expected = model(x)
        bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(rows=()))
        assert model[0].nnz == int((pruned.weight != 0).sum())
        assert model[1] is plain
        torch.testing.assert_close(model(x), expected)

    def test_magnitude(self):
        conv = nn.Conv2d(6, 8, 3)
        mask = convert.magnitude_mask(conv.weight, 0.75)
        layer = bm.sparsify_(nn.Sequential(conv), bm.UnstructuredSparseWeightConfig(0.75, rows=()))[0]
        assert torch.equal(layer.weight != 0, mask)
        assert int(mask.sum()) == math.prod(conv.weight.shape) // 4
