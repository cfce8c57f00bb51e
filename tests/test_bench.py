"""The benchmark command on tiny shapes: that what it writes is complete and what it computes from times is right. No
test looks at how long anything takes."""

import copy
import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch
from bigmodel_ext import _native, cli
from bigmodel_ext.bench import harness, host, limits, peers, results
from bigmodel_ext.bench.harness import Case
from bigmodel_ext.bench.selection import Selection, parse_shapes

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import readme


def bench(out, *argv):
    return cli.main(["bench", "--out", str(out), *argv])


def rows_of(out, suite):
    return results.read(out / host.slug() / f"{suite}.csv")


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
        (("int9",), "SUITE must be one of int8, sparse, blocks, conv, dropout, norm, overhead, model, got 'int9'"),
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


@pytest.fixture
def _nothing_told(monkeypatch):
    monkeypatch.setattr(peers, "_told", set())


@pytest.mark.usefixtures("_nothing_told")
def test_a_missing_peer_is_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    argv = ("--rounds", "1", "--peers", "torch fp32,onnxruntime")
    assert bench(tmp_path, "int8", "--shapes", "4x32x64,2x32x64", *argv) == 0
    assert {row["peer"] for row in rows_of(tmp_path, "int8")} == {"torch fp32"}
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: onnxruntime int8")]
    assert len(left_out) == 1, left_out


@pytest.mark.usefixtures("_nothing_told")
def test_a_wrong_or_failing_peer_is_left_out(capsys, monkeypatch):
    def failing(x, weight, bias):
        raise RuntimeError("no such kernel")

    broken = {
        "right": peers.Peer(peers.torch_fp32, "fp32", 4),
        "scaled": peers.Peer(lambda x, w, b: lambda: 1.1 * peers.torch_fp32(x, w, b)(), "int8", 4),
        "nan": peers.Peer(lambda x, w, b: lambda: torch.nan * peers.torch_fp32(x, w, b)(), "int8", 4),
        "failing": peers.Peer(failing, "fp32", 4),
    }
    monkeypatch.setattr(peers, "LINEAR", broken)
    x, weight, bias = torch.randn(4, 64), torch.randn(32, 64), torch.randn(32)
    assert set(peers.linear_peers(tuple(broken), Selection(), x, weight, bias)) == {"right"}
    told = capsys.readouterr().out
    assert "left out: scaled: wrong by 0.1 of the largest output (at most 0.06)" in told
    assert "left out: nan: wrong by nan" in told
    assert "left out: failing: RuntimeError: no such kernel" in told


@pytest.mark.parametrize(
    "name", [n for n in peers.LINEAR if n not in ("torch _int_mm", "torchao int8")]
)  # they compile
def test_every_peer_computes_the_layer(name):
    x, weight, bias = torch.randn(8, 64), torch.randn(32, 64), torch.randn(32)
    peer = peers.LINEAR[name]
    try:
        run = peer.build(x, weight, bias)
    except peers.Missing as reason:
        pytest.skip(str(reason))
    peers.check(name, run, torch.nn.functional.linear(x, weight, bias), peer.dtype)


def test_cold_calls_take_weights_in_turn(monkeypatch):
    monkeypatch.setattr(host, "cache_bytes", lambda: 10_000)
    assert peers.copies(5_000) == 5  # four and a bit more than twice the cache
    assert peers.copies(50_000) == 1
    used = []
    run = harness.rotating([lambda i=i: used.append(i) for i in range(3)])
    for _ in range(7):
        run()
    assert used == [0, 1, 2, 0, 1, 2, 0]


def test_ratio_is_taken_round_by_round():
    # A machine that slows down tenfold half-way: medians of times would say 1.1 or 11, each round says 2.
    ours = [1.0, 1.1, 0.9, 10.0, 11.0]
    assert harness.ratio([2 * t for t in ours], ours) == harness.Ratio(2.0, 2.0, 2.0)
    r = harness.ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 6)
    assert (r.median, r.p20, r.p80) == (3.5, 2.0, 5.0)
    assert harness.ratio([3.0], [2.0]) == harness.Ratio(1.5, 1.5, 1.5)


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(harness, "_time", lambda run, repeats: run() or 1.0)  # each call "takes" a second
    order = []
    times = harness.interleave({name: lambda name=name: order.append(name) for name in "ab"}, rounds=4)
    assert times == {"a": [1.0] * 4, "b": [1.0] * 4}
    assert order[-8:] == list("abababab")
    monkeypatch.setattr(harness.time, "perf_counter", iter(range(0, 1000, 10)).__next__)
    spent = harness.interleave({"a": lambda: None}, rounds=100, budget_s=45.0)
    assert len(spent["a"]) == 7  # the clock, first looked at after 3 rounds, says 10, 20, 30, 40 and then 50 s
    spent = harness.interleave({"a": lambda: None}, rounds=100, budget_s=0.0)
    assert len(spent["a"]) == 3


def test_rows_measured_again_replace_the_old_ones(tmp_path):
    path = tmp_path / "m" / "suite.csv"

    def row(shape, peer, speedup, threads=1):
        return {"op": "o", "shape": shape, "peer": peer, "speedup": speedup, "threads": threads, "panel": 128}

    results.update(path, [row("a", "x", 1), row("a", "gone", 2), row("b", "x", 3), row("a", "x", 4, threads=2)])
    results.update(path, [row("a", "x", 5)])
    found = {(r["shape"], r["peer"], r["threads"]): r["speedup"] for r in results.read(path)}
    assert found == {("b", "x", "1"): "3", ("a", "x", "2"): "4", ("a", "x", "1"): "5"}
    assert [p.name for p in path.parent.iterdir()] == ["suite.csv"]
    with path.open() as file:
        header = next(csv.reader(file))
    assert tuple(header) == (*results.COLUMNS, "panel")


def test_old_style_run(tmp_path):
    candidates = {"ours": lambda: None, "peer": lambda: None, "torch bfloat16": lambda: None}
    case = Case("op", "1x1", candidates, lambda: None, operations=2.0, bytes=4.0)
    rows = harness.run([case], "mine", rounds=2, out=tmp_path)
    assert [(row["peer"], row["peer_dtype"]) for row in rows] == [("peer", ""), ("torch bfloat16", "bf16")]
    assert len(rows_of(tmp_path, "mine")) == 2
    assert "1x1" in readme.render(tmp_path)


def test_parse_shapes():
    assert parse_shapes("128x4096x4096, 768x768") == ((128, 4096, 4096), (768, 768))
    assert Selection(shapes=((5, 6), (7, 8, 9))).linear_shapes((1, 2)) == ((1, 5, 6), (2, 5, 6), (7, 8, 9))


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_peaks_run_on_every_instruction_set(isa, kind):
    kernel = {"int8": _native.peak_int8, "fp32": _native.peak_fp32}[kind]
    if isa == "scalar":
        with pytest.raises(ValueError, match="the instruction set scalar has no kernel that shows its peak"):
            kernel(10)
        assert limits.peak(kind) is None
        assert limits.linear(kind, 1e6, 1e6) is None
        return
    assert kernel(20) == 2 * kernel(10) > 0
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        kernel(0)


def test_reading_reads_all_of_it(isa):
    assert _native.peak_read(torch.zeros(100_000, dtype=torch.uint8)) == 100_000 // 512 * 512
    assert _native.peak_read(torch.zeros(100, dtype=torch.uint8)) == 0
    with pytest.raises(TypeError, match="x must be uint8"):
        _native.peak_read(torch.zeros(512))


def test_the_longer_of_two_times_is_the_limit(monkeypatch):
    monkeypatch.setattr(limits, "peak", lambda kind: 1e12)
    monkeypatch.setattr(limits, "read_bandwidth", lambda nbytes: 1e10 if nbytes >= limits.BEYOND_CACHES else 1e11)
    assert limits.linear("int8", 2e9, 1e6).seconds == pytest.approx(2e-3)
    warm, cold = (limits.linear("int8", 2e6, 1e6, cache) for cache in ("warm", "cold"))
    assert (warm.seconds, cold.seconds) == (pytest.approx(1e-5), pytest.approx(1e-4))
    assert cold.name == "reading 10 GB/s"


def _synthetic(folder: Path) -> None:
    """Rows as a run writes them, with round figures."""
    facts = {
        "date": "2026-01-02", "commit": "abc1234", "cpu": "Some CPU", "isa": "avx2", "threads": 1, "torch": "2.13.0",
        "packages": "onnxruntime 1.0", "load": 0.1, "cache": "warm", "p20": 0.5, "p80": 9, "rounds": 7,
    }  # fmt: skip

    def row(op, shape, peer, speedup, **more):
        return {**facts, "op": op, "shape": shape, "ours": op, "peer": peer, "speedup": speedup, **more}

    lines = {"limit": "fp32 peak", "limit_us": 5, "limit_percent": 40.0, "peak_gops": 200, "memory_gbps": 20}
    sparse = []
    for sparsity, ratio in ((0.0, 0.5), (0.5, 1.5), (0.9, 8.0)):
        for peer, dtype, times in (
            ("torch fp32", "fp32", 2.0),
            ("oneDNN packed fp32", "fp32", 1.0),
            ("torch bf16", "bf16", 0.6),
        ):
            sparse.append(row(
                "sparse_linear", f"M=8 N=64 K=64 {sparsity:.0%}", peer, ratio * times, m=8, n=64, k=64,
                sparsity=sparsity, dtype="fp32", peer_dtype=dtype, gbps=5, real_gops=50, gops=100, **lines,
            ))  # fmt: skip
    results.update(folder / "sparse.csv", sparse)
    results.update(folder / "int8.csv", [
        row("int8_linear", "M=1 N=64 K=64", peer, ratio, m=1, n=64, k=64, dtype="int8", peer_dtype=dtype, gbps=20,
            real_gops=40, gops=40, **{**lines, "limit_percent": 80.0})
        for peer, dtype, ratio in (
            ("torch fp32", "fp32", 8.0), ("torch dynamic x86", "int8", 1.25), ("onnxruntime int8", "int8", 0.8),
        )
    ])  # fmt: skip
    results.update(folder / "dropout.csv", [
        row("dropout plain", "64x768 float32 fwd", peer, ratio, gbps=20, bytes=393216, ours_us=20, peer_us=20 * ratio,
            **{**lines, "limit_percent": 50.0})
        for peer, ratio in (("torch eager", 12.0), ("inductor", 15.0), ("memcpy", 0.5))
    ])  # fmt: skip


def test_readme_tables_come_from_the_rows(tmp_path):
    _synthetic(tmp_path / "some-cpu")
    text = readme.render(tmp_path)
    assert text.startswith(readme.BEGIN)
    assert text.endswith(readme.END)
    assert "Some CPU, avx2, 1 thread(s), torch 2.13.0, onnxruntime 1.0, 2026-01-02 (abc1234)" in text
    int8 = next(line for line in text.splitlines() if line.startswith("| int8_linear"))
    assert (
        int8 == "| int8_linear | M=1 N=64 K=64 | 8.00x [0.50, 9.00] | **0.80x** onnxruntime int8 [0.50, 9.00] | 80 % |"
    )
    assert "**INT8 linear: at least as fast as the best other of the dtype in 0 of 1, geometric mean 0.80x**" in text
    assert "| 12.00x [0.50, 9.00] | 15.00x inductor [0.50, 9.00] | **0.50x** [0.50, 9.00] | 50 % |" in text
    dense = text.split("**Where a dense layer is faster**")[1].splitlines()
    assert [line.split(" | ")[1:] for line in dense if line.startswith("| ")][2:] == [
        ["M=1 N=64 K=64", "**0.80x** onnxruntime int8 [0.50, 9.00] |"],
        ["M=8 N=64 K=64 0%", "**0.30x** torch bf16 [0.50, 9.00] |"],
        ["M=8 N=64 K=64 50%", "**0.90x** torch bf16 [0.50, 9.00] |"],
    ]
    assert "png" not in text  # none is there


def test_readme_text_around_the_figures_stays(tmp_path, monkeypatch):
    _synthetic(tmp_path / "results" / "some-cpu")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme.render, "__defaults__", (tmp_path / "results",))
    readme.README.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.main()
    text = readme.README.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n\nSome CPU")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "old" not in text


def test_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from bigmodel_ext.bench import plot

    assert bench(tmp_path, "--plot") == 1
    assert "no rows to draw" in capsys.readouterr().err
    folder = tmp_path / "some-cpu"
    _synthetic(folder)
    assert bench(tmp_path, "--plot") == 0
    assert sorted(p.name for p in folder.glob("*.png")) == ["dropout.png", "roofline.png", "sparsity.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))
    curves = plot._curves(results.read(folder / "sparse.csv"), "fp32")
    assert curves["best dense fp32"] == [(0.0, 0.5), (0.5, 1.5), (0.9, 8.0)]
    assert plot.crossover(curves["best dense fp32"]) == pytest.approx(0.25)
    assert plot.crossover(curves["torch float32"]) == 0.0
    assert plot.crossover([(0.0, 0.5), (0.5, 0.9)]) is None
