"""The benchmark command on tiny shapes: that what it writes is complete. No test looks at how long anything
takes."""

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
from bigmodel_ext import _native, cli
from bigmodel_ext.bench import harness, host, results
from bigmodel_ext.bench.harness import Case

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_runs import bench, rows_of

from bench import readme


@pytest.mark.parametrize(
    ("suite", "argv", "names"),
    [
        ("int8", ("--shapes", "8x256x512", "--peers", "torch fp32,bf16"), {"torch fp32", "torch bf16"}),
        ("sparse", ("--shapes", "8x256x512", "--peers", "torch fp32,int8_linear"), {"torch fp32", "int8_linear"}),
        ("dropout", ("--shapes", "64x256", "--peers", "eager,memcpy"), {"torch eager", "memcpy"}),
        ("blocks", ("--quick", "--shapes", "8x64x64", "--peers", "torch fp32"), {"torch fp32"}),
        ("conv", ("--quick", "--peers", "torch fp32"), {"torch fp32"}),
        ("norm", ("--shapes", "8x64", "--peers", "eager,memcpy"), {"torch eager", "memcpy"}),
        ("overhead", (), {"torch fp32", "torch fp32, no bias"}),
    ],
)
def test_a_suite_writes_complete_rows(tmp_path, capsys, suite, argv, names):
    assert bench(tmp_path, suite, "--rounds", "2", *argv) == 0
    rows = rows_of(tmp_path, suite)
    assert {row["peer"] for row in rows} == names
    for row in rows:
        assert set(results.COLUMNS) <= set(row)
        assert all(row[c] for c in ("date", "commit", "cpu", "isa", "threads", "torch", "op", "shape", "cache", "ours"))
        assert float(row["p20"]) <= float(row["speedup"]) <= float(row["p80"])
        assert float(row["ours_us"]) > 0
        assert row["rounds"] == "2"
        assert row["threads"] == "1"
        if suite not in ("overhead", "norm") and _native.active_isa() != "scalar":
            assert float(row["limit_us"]) > 0
            assert row["limit"]
            assert row["limit_percent"]
    text = capsys.readouterr().out
    assert f"{suite}.csv" in text
    assert rows[0]["shape"] in text


def test_sparse_rows_tell_effective_from_real_operations(tmp_path):
    assert bench(tmp_path, "sparse", "--rounds", "1", "--shapes", "8x64x256", "--peers", "torch fp32") == 0
    half = next(r for r in rows_of(tmp_path, "sparse") if r["sparsity"] == "0.5" and r["op"] == "sparse_linear")
    assert 0.4 < float(half["real_gops"]) / float(half["gops"]) < 0.6


@pytest.mark.parametrize("suite", ["int8", "sparse"])
def test_single_rows_are_measured_cold_too(tmp_path, monkeypatch, suite):
    module = importlib.import_module(f"bigmodel_ext.bench.{suite}")
    monkeypatch.setattr(module, "COLD_BYTES", 1000)
    monkeypatch.setattr(host, "cache_bytes", lambda: 10_000)
    assert bench(tmp_path, suite, "--shapes", "1x32x64,2x32x64", "--rounds", "1", "--peers", "torch fp32") == 0
    cold = {(row["m"], row["op"]) for row in rows_of(tmp_path, suite) if row["cache"] == "cold"}
    assert cold == {
        ("1", op) for op in (("int8_linear",) if suite == "int8" else ("sparse_linear", "int8_sparse_linear"))
    }


def test_encoder_rows(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from bigmodel_ext.bench import model

    monkeypatch.setattr(model, "ENCODERS", {"quick": (model.Encoder("tiny", 1, 24, 2, 8),)})
    assert bench(tmp_path, "model", "--quick", "--rounds", "1", "--peers", "torch fp32,bf16") == 0
    rows = rows_of(tmp_path, "model")
    assert {row["ours"] for row in rows} == {variant.name for variant in model.OURS}
    assert {row["peer"] for row in rows} == {"torch fp32", "torch bf16"}
    for row in rows:
        assert float(row["limit_us"]) > 0
        if (row["ours"], row["peer"]) == ("int8", "torch fp32"):
            assert 0 < float(row["ours_mb"]) < float(row["peer_mb"])


def test_a_wrongly_converted_encoder_is_not_timed(monkeypatch):
    pytest.importorskip("transformers")
    from bigmodel_ext.bench import model

    def stretched(encoder):
        with torch.no_grad():
            encoder.encoder.layer[0].output.LayerNorm.weight *= 1.01
        return encoder

    dense = model.Encoder("tiny", 1, 24, 2, 8).build()
    ids = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ArithmeticError, match="broken: outputs are off by"):
        model._check(model.Variant("broken", stretched, "fp32"), stretched(copy.deepcopy(dense)), dense, ids)


def test_list(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert cli.main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("suite")] == [
        "int8",
        "weight_only",
        "binary_coded",
        "sparse",
        "blocks",
        "conv",
        "dropout",
        "norm",
        "overhead",
        "model",
    ]
    assert "peer  torch fp32             here" in lines
    assert any(line.startswith("peer  onnxruntime int8") and "onnxruntime" in line.split("needs")[1] for line in lines)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("int9",),
            "SUITE must be one of int8, weight_only, binary_coded, sparse, blocks, conv, dropout, norm, overhead, "
            "model, got 'int9'",
        ),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--rounds", "0"), "--rounds must be at least 1, got 0"),
        (("--shapes", "4x4x4x4"), "--shapes must be MxNxK or NxK"),
        (("--shapes", "0x4"), "--shapes must be MxNxK or NxK"),
        (("int8", "--shapes", "4096"), "--shapes must be MxNxK or NxK"),
    ],
)
def test_wrong_usage(capsys, tmp_path, argv, message):
    assert bench(tmp_path / "out", *argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ours_wrong_ends_the_run(tmp_path, capsys, monkeypatch):
    from bigmodel_ext import functional

    right = functional.int8_linear
    monkeypatch.setattr(functional, "int8_linear", lambda *args: right(*args) + 1e-6)
    assert bench(tmp_path, "int8", "--shapes", "4x32x64", "--rounds", "1", "--peers", "torch fp32") == 1
    assert "differs from the reference" in capsys.readouterr().err
    assert rows_of(tmp_path, "int8") == []


def test_old_style_run(tmp_path):
    candidates = {"ours": lambda: None, "peer": lambda: None, "torch bfloat16": lambda: None}
    case = Case("op", "1x1", candidates, lambda: None, operations=2.0, bytes=4.0)
    rows = harness.run([case], "mine", rounds=2, out=tmp_path)
    assert [(row["peer"], row["peer_dtype"]) for row in rows] == [("peer", ""), ("torch bfloat16", "bf16")]
    assert len(rows_of(tmp_path, "mine")) == 2
    assert "1x1" in readme.render(tmp_path)
