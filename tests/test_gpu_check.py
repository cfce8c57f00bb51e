"""make gpu-check, as far as it goes without a GPU."""

import csv
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bigmodel_ext import _native

BENCH = Path(__file__).parent.parent / "bench"
HOST = {"date": "2026-11-24", "gpu": "a card", "torch": "2.11"}
ROW = {"suite": "int8", "op": "int8_linear", "shape": "1x2x3", "dtype": "bfloat16", "peer": "torch bf16",
       "ours_us": 2.0, "peer_us": 3.0, "speedup": 1.5, "p20": 1.4, "p80": 1.6, "gbps": 10.0, "tops": 1.0}  # fmt: skip


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu_check")


def gpu_check(tmp_path, *args):
    command = [sys.executable, BENCH / "gpu_check.py", "--no-build", "--results", tmp_path, *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_dry_run_says_what_would_run(tmp_path):
    result = gpu_check(tmp_path, "--dry-run")
    built = "CUDA kernels built: yes" in result.stdout
    assert result.returncode == (0 if built else 1), result.stdout + result.stderr
    assert "phases import: yes" in result.stdout
    phases = ("checks", "fragments", "op-tests", "memcheck", "racecheck", "initcheck", "suite-dropout", "suite-int8",
              "suite-small", "suite-sparse", "dispatch")  # fmt: skip
    assert [line.split()[2] for line in result.stdout.splitlines() if line.startswith("would run")] == [*phases]
    assert "would run op-tests" in gpu_check(tmp_path, "--dry-run", "--only", "op-tests").stdout
    assert gpu_check(tmp_path, "--dry-run", "--only", "everything").returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: make gpu-check runs it all")
def test_without_a_gpu_it_fails_clearly(tmp_path):
    result = gpu_check(tmp_path)
    assert result.returncode == 2
    assert "finds no CUDA device" in result.stderr


def python(driver, name, code, limit=60.0, **more):
    return driver.Phase(name, "", [sys.executable, "-c", code], limit, **more)


def test_a_phase_that_fails_is_reported_and_leaves_a_log(driver, tmp_path):
    later = time.monotonic() + 100
    assert driver.run_phase(python(driver, "good", "print('done')"), tmp_path, later) == "passed"
    assert (tmp_path / "good.log").read_text() == "done\n"
    outcome = driver.run_phase(python(driver, "bad", "raise SystemExit(3)"), tmp_path, later)
    assert outcome == f"FAILED: exit status 3; see {tmp_path / 'bad.log'}"
    outcome = driver.run_phase(python(driver, "crash", "import os; os.abort()"), tmp_path, later)
    assert outcome.startswith("FAILED: exit status -6")
    slow = python(driver, "slow", "import time; print('begun', flush=True); time.sleep(600)", 0.01)
    assert driver.run_phase(slow, tmp_path, later).startswith("FAILED: stopped after 0 s")
    skipped = python(driver, "none", "", missing=lambda: "there is no such tool")
    assert driver.run_phase(skipped, tmp_path, later) == "skipped: there is no such tool"
    assert (
        driver.run_phase(python(driver, "late", ""), tmp_path, time.monotonic()) == "FAILED: not run, the time was up"
    )
    seen = python(driver, "env", "import os; print(os.environ['WHERE'])", environment={"WHERE": "here"})
    assert driver.run_phase(seen, tmp_path, later) == "passed"
    assert (tmp_path / "env.log").read_text() == "here\n"


def test_the_limits_leave_room(driver, tmp_path):
    """All phases at their usual time, a half of their limits, and the build within the eight minutes."""
    assert driver.TOTAL_S < 480
    assert sum(phase.limit_s for phase in driver.phases(tmp_path)) / 2 + 100 < driver.TOTAL_S


def test_the_summary(driver, tmp_path, capsys):
    (tmp_path / "suite-int8.json").write_text(json.dumps({"checks": [], "rows": [ROW]}))
    (tmp_path / "dispatch.json").write_text(
        json.dumps(
            {
                "checks": [],
                "rows": [
                    {
                        "op": "int8_mm: triton",
                        "shape": "8x1x1",
                        "peer": "cuda",
                        "ours_us": 1.0,
                        "peer_us": 2.0,
                        "speedup": 2.0,
                    }
                ],
            }
        )
    )
    (tmp_path / "fragments.json").write_text(
        json.dumps({"checks": [["mma s8", "passed"], ["wgmma s8", "FAILED: 3 of 4096 differ"]], "rows": []})
    )
    (tmp_path / "checks.json").write_text('{"checks": [["val')  # its process was stopped
    (tmp_path / "measured.json").write_text('{"rows": []}')
    outcomes = {"build": "passed", "fragments": "FAILED: exit status 1", "memcheck": "skipped: no tool"}
    assert not driver.summarise(outcomes, tmp_path, HOST)
    printed = capsys.readouterr().out
    assert "int8_linear | 1x2x3 | torch bf16 | 2.0 | 3.0 | 1.5x [1.4, 1.6] | 10.0 | 1.0" in printed
    assert "1 of 2 single checks passed\n  wgmma s8: FAILED: 3 of 4096 differ" in printed
    assert printed.endswith("build | passed\nfragments | FAILED: exit status 1\nmemcheck | skipped: no tool\n")
    rows = list(csv.DictReader((tmp_path / "gpu_check.csv").open()))
    assert [(row["op"], row["gpu"], row["suite"]) for row in rows] == [
        ("int8_mm: triton", "a card", ""), ("int8_linear", "a card", "int8")]  # fmt: skip
    assert driver.summarise({"build": "passed", "memcheck": "skipped: no tool"}, tmp_path, HOST)


def test_op_tests_are_files(driver):
    files = driver.op_tests()
    assert len(files) >= 5
    assert all((driver.ROOT / path).is_file() for path in files)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu.__main__")


def test_ratios_of_turns(gpu):
    from gpu.timing import compare, copies

    (row,) = compare({"ours": [1e-6, 2e-6, 4e-6], "torch": [3e-6, 4e-6, 4e-6]})
    assert row == {"peer": "torch", "ours_us": 2.0, "peer_us": 4.0, "speedup": 2.0, "p20": 1.0, "p80": 3.0}
    assert copies(16 << 20) == 8
    assert copies(1 << 30) == 1
    assert copies(0) == 32


@pytest.mark.skipif(not _native.has_emulated(), reason="built without BIGMODEL_EMULATE")
def test_fragments_are_compared(gpu, monkeypatch):
    """The emulator stands in for the GPU; then for one that has a bit wrong."""
    from gpu import fragments

    emulated = _native.load_emulated()
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.clone)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(_native, "load_cuda", lambda: emulated)
    outcomes = fragments.compare()
    assert len(outcomes) == 8 + 6 + 15
    assert {outcome for _, outcome in outcomes} == {"passed"}

    class Wrong:
        def __getattr__(self, name):
            def call(*args):
                getattr(emulated, name)(*args)
                args[-1][0, 0] ^= 1

            return call

    monkeypatch.setattr(_native, "load_cuda", Wrong)
    assert all(outcome.startswith("FAILED: 1 of ") for _, outcome in fragments.compare())


def test_a_report_is_kept_row_by_row(gpu, tmp_path, monkeypatch):
    def two_rows_and_an_error():
        yield {"op": "a"}
        yield {"op": "b"}
        raise RuntimeError("the third")

    monkeypatch.setitem(gpu.suites.SUITES, "int8", two_rows_and_an_error)
    with pytest.raises(RuntimeError, match="the third"):
        gpu.run("suite-int8", tmp_path)
    rows = json.loads((tmp_path / "suite-int8.json").read_text())["rows"]
    assert rows == [{"suite": "int8", "op": "a"}, {"suite": "int8", "op": "b"}]
    monkeypatch.setattr(gpu.checks, "run_checks", lambda: [("one", "passed"), ("two", "FAILED: it is")])
    assert gpu.run("checks", tmp_path) == 1
    monkeypatch.setattr(gpu.checks, "run_checks", lambda: [("one", "passed")])
    assert gpu.run("checks", tmp_path) == 0


@pytest.fixture
def rehearsal(gpu, monkeypatch):
    """On the CPU, at small sizes, and without waiting for times: everything but the device."""
    import gpu as package
    from gpu import dispatch, suites

    monkeypatch.setattr(package, "DEVICE", "cpu")
    seconds = {"ours": [1e-6] * 9, "cuda": [2e-6] * 9, "triton": [1e-6] * 9}

    def turns(candidates):
        for calls in candidates.values():
            calls[0]()
        return {name: seconds.get(name, [1.5e-6] * 9) for name in candidates}

    monkeypatch.setattr(suites, "take_turns", turns)
    monkeypatch.setattr("gpu.timing.take_turns", turns)
    monkeypatch.setattr(suites, "copies", lambda nbytes: 1)
    monkeypatch.setattr(suites, "LLAMA", ((96, 64),) * 4)
    monkeypatch.setattr(suites, "SQUARE", (64, 96))
    monkeypatch.setattr(suites, "ROWS_OF_DROPOUT", ((8, 16),))
    monkeypatch.setattr(torch, "compile", lambda f: f)
    monkeypatch.setattr(dispatch, "N", 70)
    monkeypatch.setattr(dispatch, "K", 96)
    return gpu


@pytest.mark.parametrize("suite", ["int8", "small", "sparse", "dropout"])
def test_suites_run(rehearsal, suite, tmp_path):
    assert rehearsal.run(f"suite-{suite}", tmp_path) == 0
    rows = json.loads((tmp_path / f"suite-{suite}.json").read_text())["rows"]
    assert rows
    assert all(row["speedup"] == 1.5 and row["gbps"] > 0 for row in rows)
    peers = {row["peer"] for row in rows}
    assert peers >= ({"eager", "inductor", "copy"} if suite == "dropout" else {"torch bf16"})
    if suite == "int8":
        assert {"_int_mm alone", "_int_mm + compiled epilogue"} <= peers


def test_a_suite_notices_wrong_results(rehearsal, tmp_path, monkeypatch):
    import bigmodel_ext as bm

    monkeypatch.setattr(bm.nn.Int8Linear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], self.out_features))
    with pytest.raises(AssertionError, match=r"int8_linear 1x96x64: relative error 1\.0000, at most 0\.05"):
        rehearsal.run("suite-int8", tmp_path)


def test_dispatch_writes_rows(rehearsal, tmp_path, monkeypatch):
    from bigmodel_ext import _dispatch, _measured
    from gpu import dispatch

    def two(op, x):
        run = next(c.run for c in _dispatch._table[op, "cpu"] if c.backend == "cpu")
        return {"cuda": run, "triton": run}

    monkeypatch.setattr(dispatch, "candidates", two)
    monkeypatch.setattr(_measured, "architecture", lambda device: "90")
    assert rehearsal.run("dispatch", tmp_path) == 0
    table = _measured.read(tmp_path / "measured.json")
    assert {key[2] for key in table} == {*_measured.CLASSES.values(), _measured.MOST_ROWS}
    assert {(row.backend, row.ratio) for row in table.values()} == {("triton", 2.0)}
    assert {key[0] for key in table} >= {"int8_linear", "fused_dropout_norm_backward", "binary_coded_linear"}


def test_small_shapes_run(rehearsal, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert rehearsal.run("small", tmp_path) == 0
