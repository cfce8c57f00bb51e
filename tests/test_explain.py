"""explain: a row for every layer, and what strict refuses."""

import bigmodel_ext as bm
import pytest
import torch
from layers import INT8, convert_all, network
from torch import nn


class TestExplain:
    def test_rows(self):
        model = convert_all(network())
        report = bm.explain(model, batch=4)
        rows = {row.fqn: row for row in report.layers}
        assert list(rows) == [fqn for fqn, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Dropout))]
        for fqn, row in rows.items():
            layer = model.get_submodule(fqn)
            assert row.layer == type(layer).__name__
            assert row.bytes == sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
            assert (row.gain is None) == (not row.converted)
            assert row.gain is None or row.gain > 0
            assert row.kernel is None or row.kernel.split("/")[0] in ("cpu", "reference")
        assert rows["0.0"].dense_bytes == 4 * 40 * 24
        assert rows["4"].dense_bytes == 4 * 10 * 25
        lines = str(report).splitlines()
        assert len(lines) == len(rows) + 3
        assert lines[0].split() == [
            "layer",
            "type",
            "kernel",
            "isa",
            "bytes",
            "dense",
            "fp32",
            "gain",
            "from",
            "reason",
        ]
        assert all(any(line.startswith(fqn) and row.reason in line for line in lines) for fqn, row in rows.items())

    def test_not_converted(self):
        rows = bm.explain(nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Dropout(inplace=True))).layers
        assert [row.reason for row in rows] == ["not converted", "not converted", "inplace=True writes to its input"]

    def test_strict(self):
        model = convert_all(network())
        with pytest.raises(
            RuntimeError, match=r"kernel is not used for 2.self_attn.out_proj \(nn.MultiheadAttention reads"
        ):
            bm.explain(model, strict=True, batch=1)
        model[2] = nn.Identity()
        bm.explain(model, strict=True, batch=1)
        wide = nn.Sequential(bm.nn.SparseLinear.from_dense(nn.Linear(3, 4)).double())  # no kernel takes float64
        with pytest.raises(
            RuntimeError, match=r"the requested kernel is not used for 0 \(reference/sparse_linear: .*\)"
        ):
            bm.explain(wide, strict=True, batch=1)
        bm.explain(nn.Sequential(nn.Linear(2, 2)), strict=True)

    def test_batch(self):
        with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
            bm.explain(network(), batch=0)

    def test_meta_models_are_described_but_not_timed(self):
        model = nn.Sequential(bm.nn.Int8Linear(8, 8, device="meta"))
        (row,) = bm.explain(model).layers
        assert row.gain is None
        assert row.kernel is not None


def test_explain_draws_nothing_and_names_a_dtype_it_cannot_run():
    model = bm.quantize_(nn.Sequential(nn.Linear(8, 4)), INT8)
    before = torch.get_rng_state()
    bm.explain(model)
    assert torch.equal(torch.get_rng_state(), before)
    row = bm.explain(model.double()).layers[0]
    assert row.reason == "can't run: x must be float32, bfloat16 or float16, got float64"
