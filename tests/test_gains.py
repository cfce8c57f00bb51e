"""What was measured is kept, in memory and in a file. No test here depends on real time: what is measured is given."""

import copy
import json
import math
from functools import partial

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _gains, _native
from torch import nn

MEASURED = bm.Int8DynamicActivationInt8WeightConfig()


def forget(monkeypatch):
    """As a new process begins."""
    monkeypatch.setattr(_gains, "_memory", _gains._Memory())


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


def test_a_name_too_long_is_told_and_measuring_goes_on(figures, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", "x" * 5000)
    with pytest.warns(UserWarning, match="is ignored and layers are measured again"):
        assert type(bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)[0]) is bm.nn.Int8Linear


def test_a_user_without_a_home_keeps_no_file(figures, monkeypatch):
    for name in ("BIGMODEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert _gains.file() is None
    assert type(bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)[0]) is bm.nn.Int8Linear


def test_autocast_has_figures_of_its_own(figures):
    figures.given = {("Int8Linear", 1): 0.5}
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="kept dense"):
        assert type(bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)[0]) is nn.Linear
    figures.given = {}
    assert type(bm.quantize_(nn.Sequential(nn.Linear(8, 8)), MEASURED)[0]) is bm.nn.Int8Linear
