"""Conversion keeps a layer dense where it measures it to be faster so. No test here depends on real time: what is
measured is given, or the clock is."""

import copy
import json
import math
import time
from functools import partial

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _candidates, _choose, _explain, _gains, _measure, _native
from layers import INT8
from torch import nn

MEASURED = bm.Int8DynamicActivationInt8WeightConfig()


class Figures:
    """Stands for the measurement: gains by class and rows, 2.0 where nothing is given, and what was asked."""

    def __init__(self):
        self.given, self.asked, self.dense = {}, [], []

    def __call__(self, dense, *others, clock):
        self.dense.append(dense.func)
        result = []
        for other in others:
            form, x = other.func, other.args[0]
            assert other().shape == dense().shape
            assert x is dense.args[0]
            assert torch.is_inference_mode_enabled()
            name = type(form).__name__
            self.asked.append((name, len(x)))
            key = (name, len(x))
            result.append(self.given.get((*key, getattr(form, "panel", None)), self.given.get(key, 2.0)))
        return result


@pytest.fixture
def figures(monkeypatch, tmp_path):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_gains, "_memory", _gains._Memory())
    given = Figures()
    monkeypatch.setattr(_measure, "gains", given)
    return given


def forget(monkeypatch):
    """As a new process begins."""
    monkeypatch.setattr(_gains, "_memory", _gains._Memory())


def models():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))


def test_a_name_too_long_is_told_and_measuring_goes_on(figures, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", "x" * 5000)
    with pytest.warns(UserWarning, match="is ignored and layers are measured again"):
        assert type(bm.quantize_(models(), MEASURED)[0]) is bm.nn.Int8Linear


def test_a_user_without_a_home_keeps_no_file(figures, monkeypatch):
    for name in ("BIGMODEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert _gains.file() is None
    assert type(bm.quantize_(models(), MEASURED)[0]) is bm.nn.Int8Linear


def test_autocast_has_figures_of_its_own(figures):
    figures.given = {("Int8Linear", 1): 0.5}
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="kept dense"):
        assert type(bm.quantize_(models(), MEASURED)[0]) is nn.Linear
    figures.given = {}
    assert type(bm.quantize_(models(), MEASURED)[0]) is bm.nn.Int8Linear


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


class TestMemory:
    def test_equal_layers_are_measured_once(self, figures):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 9), nn.Linear(8, 9, bias=False))
        bm.quantize_(model, MEASURED)
        assert len(figures.asked) == 6
        bm.quantize_(copy.deepcopy(model), MEASURED)
        assert len(figures.asked) == 6

    def test_another_process_measures_nothing_and_decides_alike(self, figures, monkeypatch, recwarn):
        figures.given = {("Int8Linear", 1): 0.5}
        bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
        forget(monkeypatch)
        figures.given, figures.asked = {}, []
        model = bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
        assert type(model[0]) is nn.Linear
        assert not figures.asked
        assert _gains.kept() == 2
        assert json.loads(_gains.file().read_text())["environment"] == _gains.environment()

    def test_what_else_is_measured_apart(self, figures):
        float32 = nn.Linear(64, 64)

        def asked(layer=float32, config=MEASURED, convert=bm.quantize_):
            figures.asked = []
            convert(nn.Sequential(copy.deepcopy(layer)), config)
            return len(figures.asked)

        sparse = partial(asked, convert=bm.sparsify_)
        assert asked() == 2
        assert asked() == 0
        assert asked(nn.Linear(64, 64).bfloat16()) == 2
        assert asked(config=bm.Int8DynamicActivationInt8WeightConfig(rows=(1, 7))) == 1
        assert sparse(config=bm.UnstructuredSparseWeightConfig(0.5)) == 2
        assert sparse(config=bm.UnstructuredSparseWeightConfig(0.5005)) == 0, "nearly as many stored"
        assert sparse(config=bm.UnstructuredSparseWeightConfig(0.53)) == 2
        assert sparse(config=bm.Int8BlockSparseWeightConfig(0.5)) == 2
        with _native.forced_isa("scalar"):
            assert asked() == (2 if _native.available_isas() != ("scalar",) else 0)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(before + 1)
            assert asked() == 2
        finally:
            torch.set_num_threads(before)
        torch.set_float32_matmul_precision("medium")
        try:
            assert asked() == 2
        finally:
            torch.set_float32_matmul_precision("highest")
        assert asked() == 0

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe", b'{"environment": ""}', b'{"gains": 3}',
         b'{"gains": {"a": "x"}}', b'{"gains": {"a": NaN}}', b'{"gains": {"a": -1.0}}', b'{"gains": {"a": true}}'],
    )  # fmt: skip
    def test_a_broken_file_is_told_and_replaced(self, figures, monkeypatch, content):
        path = _gains.file()
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"gains-.*\.json is ignored and layers are measured again"):
            bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
        assert len(figures.asked) == 2
        forget(monkeypatch)
        assert _gains.kept() == 2
        assert [child.name for child in path.parent.iterdir()] == [path.name]

    def test_a_file_is_added_to(self, figures, monkeypatch):
        bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
        first, other = _gains._memory, _gains._Memory()
        monkeypatch.setattr(_gains, "_memory", other)
        first.known()
        bm.quantize_(nn.Sequential(nn.Linear(8, 9)), MEASURED)
        first.add("another process", 1.5)
        first.save()
        forget(monkeypatch)
        assert _gains.kept() == 5

    def test_no_file(self, figures, monkeypatch, tmp_path):
        for value in ("off", str(tmp_path / "file" / "below")):
            (tmp_path / "file").touch()
            monkeypatch.setenv("BIGMODEL_CACHE", value)
            forget(monkeypatch)
            figures.asked = []
            for _ in range(2):
                bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
            assert len(figures.asked) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_where_the_file_is(self, monkeypatch):
        monkeypatch.setenv("BIGMODEL_CACHE", "~/there")
        monkeypatch.setenv("HOME", "/home/someone")
        assert str(_gains.file()).startswith("/home/someone/there/gains-")
        monkeypatch.delenv("BIGMODEL_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert str(_gains.file()).startswith("/somewhere/bigmodel_ext/gains-")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert str(_gains.file()).startswith("/home/someone/.cache/bigmodel_ext/gains-")

    def test_what_is_no_number_is_not_written(self, figures, recwarn):
        figures.given = {("Int8Linear", 1): math.nan}
        bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)
        assert list(json.loads(_gains.file().read_text())["gains"].values()) == [2.0]


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


class Clock:
    """Time that passes only in calls, by what each is said to take next."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(_measure, "own_clock", lambda: lambda: self.now)

    def call(self, name, *seconds):
        def run():
            self.calls.append(name)
            self.now += seconds[(self.calls.count(name) - 1) % len(seconds)]

        return run


class TestMeasurement:
    @pytest.mark.parametrize("dense", [3e-6, 3e-4, 3e-2, 3.0])
    def test_the_gain_is_the_ratio_of_times(self, monkeypatch, dense):
        clock = Clock(monkeypatch)
        gains = _measure.gains(clock.call("d", dense), clock.call("a", dense / 2), clock.call("b", dense * 4))
        assert gains == [pytest.approx(2.0), pytest.approx(0.25)]
        assert clock.now <= max(2 * _measure.MOST_S, 3 * dense * 5.5)

    def test_the_median_outlives_interruptions(self, monkeypatch):
        clock = Clock(monkeypatch)
        (gain,) = _measure.gains(clock.call("d", 1e-3), clock.call("a", 5e-4, 5e-4, 5e-4, 5e-4, 2e-2))
        assert gain == pytest.approx(2.0)

    def test_who_begins_alternates(self, monkeypatch):
        clock = Clock(monkeypatch)
        _measure.gains(clock.call("d", 1e-3), clock.call("a", 1e-3))
        assert "".join(clock.calls).startswith("dada" + "daad" * 2)

    def test_what_is_unclear_is_measured_longer_but_not_for_ever(self, monkeypatch):
        clock = Clock(monkeypatch)
        _measure.gains(clock.call("d", 1e-4), clock.call("a", 5e-5))
        soon = clock.now
        (gain,) = _measure.gains(clock.call("d2", 1e-4), clock.call("a2", 9.8e-5, 1.05e-4))
        assert 2 * soon < clock.now - soon < 2 * _measure.MOST_S
        assert 0.9 < gain < 1.1

    def test_whose_time(self, threads):
        assert _measure.own_clock() is (time.thread_time if threads == 1 else time.perf_counter)

    def test_clear(self):
        assert _measure.clear([2.0])
        assert _measure.clear([0.5])
        assert not _measure.clear([1.1])
        assert not _measure.clear([0.7, 1.5])
        assert not _measure.clear([math.nan])
        assert _measure.clear([1.1] * 30 + [0.5] * 5)
        assert not _measure.clear([1.1] * 20 + [0.5] * 15)
        assert _measure.clear([0.9] * 30 + [1.5] * 5)

    def test_the_fastest_and_those_as_fast(self):
        assert _choose.as_fast_as_best([1.0, 2.0, 1.9, 1.95]) == [1, 3]
        assert _choose.told({1: 0.5, 128: 2.0}) == "0.50x at 1 row, 2.00x at 128 rows"
