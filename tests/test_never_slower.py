"""Conversion keeps a layer dense where it measures it to be faster so. No test here depends on real time: what is
measured is given."""

import copy
import json
import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _candidates, _explain, _gains, _measure
from layers import INT8
from torch import nn

MEASURED = bm.Int8DynamicActivationInt8WeightConfig()


def models():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))


class TestWhatIsKept:
    def test_a_slower_form_leaves_the_same_layer_unpruned(self, figures):
        figures.given = {("SparseLinear", 1): 0.82, ("SparseLinear", 128): 1.4}
        model = models()
        layers, state = list(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.warns(
            UserWarning, match=r"2 layer\(s\) would get slower and were kept dense.*1: kept dense"
        ) as caught:
            assert bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(0.5)) is model
        assert caught[0].filename == __file__
        assert all(a is b for a, b in zip(model, layers, strict=True))
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
        assert figures.dense == [model[0], model[0], model[1], model[1]]
        reason = "kept dense: as SparseLinear its speed would be 0.82x at 1 row, 1.40x at 128 rows"
        for told in (model, copy.deepcopy(model)):
            assert [row.reason for row in bm.explain(told).layers] == [reason, reason]
        assert reason in str(bm.explain(model))

    @pytest.mark.parametrize(
        ("one", "many", "kept"),
        [(2.0, 3.0, False), (0.99, 0.99, False), (0.98, 3.0, True), (3.0, 0.98, True), (math.nan, 3.0, True)],
    )
    def test_slower_at_any_rows(self, figures, one, many, kept, recwarn):
        figures.given = {("Int8Linear", 1): one, ("Int8Linear", 128): many}
        model = bm.quantize_(models(), MEASURED)
        assert [type(layer) for layer in model] == 2 * [nn.Linear if kept else bm.nn.Int8Linear]
        assert len(recwarn) == kept

    def test_rows_are_those_of_the_config(self, figures):
        figures.given = {("Int8Linear", 1): 0.5}
        config = bm.Int8DynamicActivationInt8WeightConfig(rows=(3, 64))
        assert type(bm.quantize_(models(), config)[0]) is bm.nn.Int8Linear
        assert [rows for _, rows in figures.asked] == [3, 64, 3, 64]

    def test_without_rows_nothing_is_measured(self, figures):
        figures.given = {("Int8Linear", 1): 0.5}
        assert type(bm.quantize_(models(), INT8)[0]) is bm.nn.Int8Linear
        assert not figures.asked

    def test_other_devices_are_not_measured(self, figures):
        assert type(bm.quantize_(models().to("meta"), MEASURED)[0]) is bm.nn.Int8Linear
        assert not figures.asked

    def test_only_some(self, figures):
        figures.given = {("Int8Linear", 1): 0.5}
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))
        kept = model[1]
        with pytest.warns(UserWarning, match=r"1 layer\(s\) would get slower .*: 1: kept dense"):
            bm.quantize_(model, MEASURED, lambda m, fqn: fqn == "1")
        assert model[1] is kept
        assert bm.explain(model).layers[0].reason == "not converted"
        bm.quantize_(model, INT8)
        assert [type(layer) for layer in model] == [bm.nn.Int8Linear, bm.nn.Int8Linear]

    def test_it_runs_in_the_layers_dtype_and_draws_nothing(self, figures):
        before = torch.get_rng_state()
        model = models().bfloat16()
        torch.set_rng_state(before)
        bm.quantize_(model, MEASURED)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(layer.weight.dtype == torch.bfloat16 for layer in figures.dense)
        keys = json.loads(_gains.file().read_text())["gains"]
        assert all(" dtype=bfloat16 " in key for key in keys)
        assert model[0].bias.requires_grad
        assert not model[0].bias.is_inference()

    def test_a_measurement_that_raises_changes_nothing(self, figures, monkeypatch):
        def fail(dense, *others, clock):
            if dense.args[0].shape == (128, 8) and dense.func.out_features == 6:
                raise MemoryError("no more")
            return [0.5]

        monkeypatch.setattr(_measure, "gains", fail)
        model = models()
        layers = list(model)
        with pytest.raises(MemoryError):
            bm.quantize_(model, MEASURED)
        assert all(a is b for a, b in zip(model, layers, strict=True))
        assert [row.reason for row in bm.explain(model).layers] == ["not converted", "not converted"]

    def test_an_exchange_that_fails_takes_the_reasons_back(self, figures, monkeypatch):
        figures.given = {("Int8Linear", 1): 0.5}
        model = models()
        monkeypatch.setattr(bm.convert.Changes, "_stop_fast_paths", lambda *a: 1 / 0)
        with pytest.warns(UserWarning, match="would get slower"), pytest.raises(ZeroDivisionError):
            bm.quantize_(model, MEASURED)
        assert [row.reason for row in bm.explain(model).layers] == ["not converted", "not converted"]


class TestSeveralCandidates:
    """Forms told apart by class; Int8Linear is smaller than SparseLinear here."""

    @pytest.mark.parametrize(
        ("int8", "sparse", "chosen"),
        [
            ((2.0, 2.0), (1.0, 9.0), "SparseLinear"),  # the better average
            ((2.0, 2.0), (0.9, 99.0), "Int8Linear"),  # the only one that is nowhere slower
            ((2.0, 2.0), (2.1, 2.1), "Int8Linear"),  # as fast, and smaller
            ((0.5, 2.0), (0.9, 2.0), None),
            ((math.nan, math.nan), (0.9, 2.0), None),
        ],
    )
    def test_the_fastest_is_taken(self, figures, monkeypatch, int8, sparse, chosen, recwarn):
        forms = [bm.nn.Int8Linear.from_float, bm.nn.SparseLinear.from_dense]
        table = {nn.Linear: lambda layer, config: [form(layer) for form in forms]}
        monkeypatch.setitem(_candidates.QUANTIZE, type(MEASURED), table)
        for name, gains in (("Int8Linear", int8), ("SparseLinear", sparse)):
            figures.given |= {(name, rows): gain for rows, gain in zip((1, 128), gains, strict=True)}
        model = bm.quantize_(nn.Sequential(nn.Linear(64, 64)), MEASURED)
        assert type(model[0]).__name__ == (chosen or "Linear")
        if chosen is None:
            (row,) = bm.explain(model).layers
            assert row.reason == "kept dense: as SparseLinear its speed would be 0.90x at 1 row, 2.00x at 128 rows"
        assert len(figures.dense) == 2, "candidates take turns in one measurement"

    @pytest.mark.parametrize("faster", [128, 256])
    def test_both_panels_of_a_sparse_layer_are_tried(self, figures, faster):
        figures.given = {("SparseLinear", rows, faster): 3.0 for rows in (1, 128)}
        model = bm.sparsify_(nn.Sequential(nn.Linear(300, 8)), bm.UnstructuredSparseWeightConfig(0.5))
        assert model[0].panel == faster
        assert model[0].nnz == 1200
        assert figures.asked == [("SparseLinear", rows) for rows in (1, 1, 128, 128)]
        for panel in (0, 257):
            with pytest.raises(ValueError, match=r"panel must be in \[1, 256\]"):
                bm.nn.SparseLinear.from_dense(nn.Linear(300, 8), panel=panel)


class TestExplain:
    def test_crossover_is_where_it_stays_no_slower(self, figures):
        figures.given = {
            ("Int8Linear", rows): gain for rows, gain in ((1, 3.0), (2, 0.5), (4, 0.9), (8, 1.2), (16, 2.5))
        }
        model = bm.quantize_(nn.Sequential(nn.Linear(8, 8)), INT8)
        (row,) = bm.explain(model, batch=16).layers
        assert (row.gain, row.crossover, row.requested) == (2.5, 8, True)
        assert [rows for _, rows in figures.asked] == [1, 2, 4, 8, 16]
        assert bm.explain(model, batch=12).layers[0].crossover == 8
        assert bm.explain(model, batch=4).layers[0].crossover is None
        assert bm.explain(model, batch=1).layers[0].crossover == 1
        cells = [str(bm.explain(model, batch=rows)).splitlines()[2].split()[5:8] for rows in (16, 4)]
        assert [cell[1:] for cell in cells] == [["2.50x", "8"], ["0.90x", "never"]]

    def test_not_a_number_is_no_gain(self):
        assert _explain._crossover({1: 2.0, 2: math.nan, 4: 2.0}) == 4
        assert _explain._crossover({}) is None

    def test_what_conversion_measured_is_not_measured_again(self, figures):
        model = bm.quantize_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), MEASURED)
        figures.asked = []
        bm.explain(model)
        assert [rows for _, rows in figures.asked] == [2, 4, 8, 16, 32, 64]

    def test_strict_tells_what_was_asked_for_and_not_used(self, figures):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.fast, self.slow, self.attention = nn.Linear(8, 8), nn.Linear(8, 6), nn.MultiheadAttention(8, 2)

        figures.given = {("Int8SparseLinear", 1): 0.5}
        bm.explain(Model(), strict=True)
        bm.explain(bm.quantize_(Model(), MEASURED, lambda m, fqn: fqn == "fast"), strict=True)
        message = (
            r"the requested kernel is not used for attention.out_proj \(nn.MultiheadAttention reads its weight .*\)$"
        )
        with pytest.raises(RuntimeError, match=message):
            bm.explain(bm.quantize_(Model(), MEASURED), strict=True)
        model = Model()
        with pytest.warns(UserWarning, match="would get slower"):
            bm.sparsify_(model, bm.Int8BlockSparseWeightConfig(0.5), lambda m, fqn: fqn == "slow")
        with pytest.raises(
            RuntimeError, match=r"not used for slow \(kept dense: as Int8SparseLinear its speed would be 0.50x"
        ):
            bm.explain(model, strict=True)
        bm.quantize_(model, MEASURED, lambda m, fqn: fqn == "slow")
        bm.explain(model, strict=True)


def test_loading_measures_nothing(figures, tmp_path):
    figures.given = {("Int8Linear", 1): 0.5}
    bm.save_model(bm.quantize_(models(), INT8), tmp_path / "m")
    loaded = bm.load_model(models(), tmp_path / "m")
    assert type(loaded[0]) is bm.nn.Int8Linear
    assert not figures.asked


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ((0,), ValueError, r"rows must be at least 1, got \(0,\)"),
        ([1], TypeError, r"rows must be a tuple of int, got \[1\]"),
        ((1.0,), TypeError, "rows must be a tuple of int"),
        ((True,), TypeError, "rows must be a tuple of int"),
        (128, TypeError, "rows must be a tuple of int, got 128"),
    ],
)
def test_bad_rows(rows, error, message):
    for config in (
        bm.Int8DynamicActivationInt8WeightConfig, bm.UnstructuredSparseWeightConfig, bm.Int8BlockSparseWeightConfig,
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            config(rows=rows)
