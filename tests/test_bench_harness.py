"""What benchmarks are made of: peers, interleaved times, ratios, limits, rows. No test looks at how long
anything takes."""

import csv
import importlib.util
import sys

import pytest
import torch
from bench_runs import bench, rows_of
from bigmodel_ext import _native
from bigmodel_ext.bench import harness, host, limits, peers, results
from bigmodel_ext.bench.selection import Selection, parse_shapes


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


def had_here(name):
    """Whether this machine has what a peer needs, asked without the peer's own code."""
    if any(importlib.util.find_spec(package) is None for package in peers.LINEAR[name].needs):
        return False
    if name.startswith("torch dynamic"):
        return name.split()[-1] in torch.backends.quantized.supported_engines
    if name == "torch CSR":
        return torch.backends.mkl.is_available()
    return "oneDNN" not in name or torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("name", [name for name, peer in peers.LINEAR.items() if not peer.compiles])
def test_every_peer_computes_the_layer_or_says_what_it_needs(name):
    x, weight, bias = torch.randn(8, 64), torch.randn(32, 64), torch.randn(32)
    peer = peers.LINEAR[name]
    if had_here(name):
        peers.check(peer.build(x, weight, bias), torch.nn.functional.linear(x, weight, bias), peer.dtype)
    else:
        with pytest.raises(peers.Missing):
            peer.build(x, weight, bias)


@pytest.mark.usefixtures("_nothing_told")
@pytest.mark.parametrize("wrong", [False, True])
def test_a_block_sparse_peer_that_does_not_run_is_named(tmp_path, capsys, monkeypatch, wrong):
    def broken(weight, size):
        if wrong:
            return weight + 1.0
        raise RuntimeError("no such layout")

    monkeypatch.setattr(torch.Tensor, "to_sparse_bsr", broken)
    argv = ("blocks", "--quick", "--rounds", "1", "--shapes", "8x64x64", "--peers", "torch fp32,BSR")
    assert bench(tmp_path, *argv) == 0
    assert {row["peer"] for row in rows_of(tmp_path, "blocks")} == {"torch fp32"}
    said = "wrong by" if wrong else "RuntimeError: no such layout"
    assert f"left out: torch BSR: {said}" in capsys.readouterr().out


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
