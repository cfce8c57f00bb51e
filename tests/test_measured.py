"""Dispatch among several GPU kernels: by recorded measurement, and on devices that the build was not made for."""

import json

import pytest
import torch
from bigmodel_ext import _dispatch, _measured, _native
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext._measured import Row
from bigmodel_ext.backends.cuda import _architectures

BUILT = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "compute_100"]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (0, "1 row"),
        (1, "1 row"),
        (2, "2 to 16 rows"),
        (16, "2 to 16 rows"),
        (17, "17 to 128 rows"),
        (128, "17 to 128 rows"),
        (129, "over 128 rows"),
    ],
)
def test_shape_class(rows, name):
    assert _measured.shape_class(torch.zeros(rows, 5)) == name
    assert _measured.shape_class(torch.zeros(1, rows, 5)) == name
    assert _measured.shape_class(torch.zeros(())) == "1 row"


def test_the_table_that_is_shipped_is_one():
    assert all(row.ratio >= 1 and row.op for row in _measured.read().values())


def test_rows_are_written_and_replaced(tmp_path):
    path = tmp_path / "measured.json"
    rows = [Row("int8_linear", "90", "1 row", "triton", 1.25, "2026-11-24"),
            Row("int8_mm", "80", "over 128 rows", "cuda", 1.5, "2026-11-24")]  # fmt: skip
    _measured.write(rows, path)
    _measured.write([Row("int8_linear", "90", "1 row", "cuda", 1.125, "2026-11-25")], path)
    table = _measured.read(path)
    assert len(table) == 2
    assert table["int8_linear", "90", "1 row"].backend == "cuda"
    assert table["int8_mm", "80", "over 128 rows"] == rows[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rows": [{"op": "x"}]}',
        json.dumps(
            {
                "rows": [
                    {
                        "op": "x",
                        "architecture": "90",
                        "shape_class": "9 rows",
                        "backend": "cuda",
                        "ratio": 2.0,
                        "date": "",
                    }
                ]
            }
        ),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"measured\.json is not a table of measurements"):
        _measured.read(path)


@pytest.fixture
def two_kernels(monkeypatch):
    """An op with a CUDA and a Triton kernel, on CPU tensors; the second refuses rows of 7."""

    def odd(x):
        return "rows of 7" if x.shape[-1] == 7 else None

    def triton(x, *args):
        return _dispatch.fall_back("int8_mm", x, *args) if odd(x) else "triton"

    reference = Candidate("reference", lambda *args: "reference")
    candidates = [Candidate("cuda", lambda *args: "cuda"), Candidate("triton", triton, odd), reference]
    monkeypatch.setitem(_dispatch._table, ("int8_mm", "cpu"), candidates)

    def measured(backend):
        row = Row("int8_mm", "90", "2 to 16 rows", backend, 1.5, "2026-11-24")
        monkeypatch.setattr(
            _measured, "find", lambda op, x: row if _measured.shape_class(x) == row.shape_class else None
        )

    return measured


def test_what_was_measured_to_be_faster_runs(two_kernels):
    a, b = torch.zeros(4, 8), torch.zeros(2, 8)
    run = _dispatch._by_measurement("int8_mm")
    choice = _dispatch.explain("int8_mm", a, b)
    assert (run(a, b), choice.backend, choice.reason) == ("cuda", "cuda", "cuda first: not measured")

    two_kernels("triton")
    choice = _dispatch.explain("int8_mm", a, b)
    assert (run(a, b), choice.backend) == ("triton", "triton")
    assert choice.reason == "triton measured 1.50x the next best (sm_90, 2 to 16 rows, 2026-11-24)"
    assert run(torch.zeros(1, 8), b) == "cuda", "another class of sizes was not measured"

    odd = torch.zeros(4, 7)
    choice = _dispatch.explain("int8_mm", odd, b)
    assert (run(odd, b), choice.backend) == ("cuda", "cuda"), "what the faster one refuses goes to the next"
    assert choice.reason.startswith("triton: rows of 7")

    two_kernels("cuda")
    assert run(a, b) == _dispatch.explain("int8_mm", a, b).backend == "cuda"


@pytest.mark.parametrize(
    ("capability", "missing"),
    [
        ((7, 5), True),
        ((8, 0), False),
        ((8, 7), False),
        ((8, 9), False),
        ((9, 0), False),
        ((10, 0), False),
        ((10, 3), False),
        ((12, 0), False),
    ],
)
def test_devices_that_the_build_is_for(capability, missing):
    found = _architectures.problems(BUILT, [(8, 0), capability])
    assert found.keys() == ({1} if missing else set())
    if missing:
        assert found[1] == (
            "cuda:1 has compute capability 7.5, and the CUDA kernels were built for sm_80, sm_86, sm_89, sm_90a,"
            " sm_100, compute_100"
        )
    assert _architectures.runs("sm_90a", (9, 0))
    assert not _architectures.runs("sm_90a", (10, 0))
    assert not _architectures.runs("sm_100a", (10, 3)), "code for one chip alone"
    assert not _architectures.runs("sm_86", (8, 0))


def test_other_devices_are_refused_with_the_reason(monkeypatch):
    cpu = torch.zeros(2, 3)  # has device index None, as a stand-in
    kernel = Candidate("cuda", lambda *args: "cuda")
    kept = _architectures.kept_from({None: "it is too old"}, {"int8_mm": kernel})["int8_mm"]
    candidates = [kept, Candidate("reference", lambda *args: "reference")]
    monkeypatch.setitem(_dispatch._table, ("int8_mm", "cpu"), candidates)
    assert kept.run(cpu, cpu) == "reference"
    assert _dispatch.explain("int8_mm", cpu, cpu).reason == "cuda: it is too old"
    assert _architectures.kept_from({}, {"int8_mm": kernel})["int8_mm"] is kernel


def test_a_forced_backend_says_why_it_can_t_run(monkeypatch):
    monkeypatch.setenv("BIGMODEL_BACKEND", "emulated")
    monkeypatch.setitem(_dispatch.unavailable, "emulated", "cuda:0 has compute capability 7.5")
    monkeypatch.setattr(_native, "has_emulated", lambda: True)
    refuse = _dispatch._default("int8_mm").run
    with pytest.raises(RuntimeError, match=r"has no kernel for these tensors: cuda:0 has compute capability 7\.5"):
        refuse(torch.zeros(2, 3))


def test_explain_says_why_no_cuda_kernel_runs(monkeypatch):
    monkeypatch.setitem(_dispatch.unavailable, "meta", "cuda:0 has compute capability 7.5")
    choice = _dispatch.explain("int8_mm", torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta"))
    assert choice.reason == "no kernel for this op on meta: cuda:0 has compute capability 7.5"
