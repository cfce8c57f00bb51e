"""Builds the package where it stands and proves its CUDA kernels on this machine's GPU, in under 8 minutes.

    python bench/gpu_check.py [--dry-run] [--no-build] [--only PHASE ...] [--results DIR]

Needs a CUDA device, nvcc, and torch with CUDA; nothing is downloaded. Phases run one after the other, each in a process
of its own with a time limit: one that fails is reported and the others still run. Each writes a log to --results (or
$RESULTS_DIR), where gpu_check.csv has all rows that were timed and measured.json what dispatch may use (copy it to
python/bigmodel_ext). The last thing printed is the summary table. `--dry-run` needs no device: it builds, imports every
phase and says what would run. Exit status: 0 all passed, 1 something failed, 2 no device.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TOTAL_S = 470.0
COLUMNS = ("date", "gpu", "torch", "suite", "op", "shape", "dtype", "peer", "ours_us", "peer_us", "speedup", "p20",
           "p80", "gbps", "tops")  # fmt: skip


@dataclass(frozen=True)
class Phase:
    name: str
    what: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: Callable[[], str | None] = lambda: None  # why it is skipped


def sanitizer() -> str | None:
    beside = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def op_tests() -> list[str]:
    """The tests that every backend's kernels pass: the Makefile's BACKEND_TESTS."""
    found = re.search(r"^BACKEND_TESTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert found is not None, "the Makefile has no BACKEND_TESTS"
    return found[1].replace("\\\n", " ").split()


def phases(results: Path) -> list[Phase]:
    def own(phase: str) -> list[str]:
        return [sys.executable, "-m", "gpu", phase, str(results)]

    def no_module(name: str) -> Callable[[], str | None]:
        return lambda: None if find_spec(name) else f"{name} is not installed"

    def no_sanitizer() -> str | None:
        return None if sanitizer() else "compute-sanitizer was not found"

    tests = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", "--rootdir", str(ROOT),
             "-m", "not long", "-k", "not compile", *(str(ROOT / path) for path in op_tests())]  # fmt: skip
    checked = [
        Phase("checks", "values, masks, streams, graphs, gradients and errors against the CPU's kernels",
              own("checks"), 60),
        Phase("fragments", "mma, mma.sp, ldmatrix and wgmma: this GPU's registers against the emulator's",
              own("fragments"), 30, missing=no_module("bigmodel_ext._C_emulated")),
        Phase("op-tests", f"{len(op_tests())} files of op tests with tensors on the GPU", tests, 100,
              {"BIGMODEL_TEST_DEVICE": "cuda"}, no_module("pytest")),
    ]  # fmt: skip
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = [sanitizer() or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
                   "--kernel-name", "kernel_substring=bigmodel", *own("small")]  # fmt: skip
        checked.append(Phase(tool, f"compute-sanitizer's {tool} on small shapes", command, 40, uncached, no_sanitizer))
    timed = {
        "dropout": ("the dropout chain, alone and before a norm, against eager, inductor and a copy", 60),
        "int8": ("int8_linear against bf16, _int_mm alone and with a compiled epilogue", 70),
        "small": ("weight-only int8 and binary codes at 1 and 8 rows against bf16", 50),
        "sparse": ("2:4, unstructured and block-sparse against bf16 and cuSPARSELt", 60),
    }
    checked += [Phase(f"suite-{name}", what, own(f"suite-{name}"), limit) for name, (what, limit) in timed.items()]
    what = "CUDA's kernels against Triton's: the rows of measured.json"
    return [*checked, Phase("dispatch", what, own("dispatch"), 60, missing=no_module("triton"))]


def run_phase(phase: Phase, results: Path, deadline: float) -> str:
    """The outcome: passed, skipped or FAILED, and why."""
    reason, left = phase.missing(), deadline - time.monotonic()
    if reason is not None:
        return f"skipped: {reason}"
    if left < 5:
        return "FAILED: not run, the time was up"
    limit, log = min(phase.limit_s, left), results / f"{phase.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            phase.command, cwd=BENCH, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **phase.environment},
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
            process.wait()
            return f"FAILED: stopped after {limit:.0f} s; see {log}"
    return "passed" if status == 0 else f"FAILED: exit status {status}; see {log}"


def build_phase(results: Path) -> Phase:
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps",
               "--force-reinstall", "-C", "cmake.define.BIGMODEL_CUDA=AUTO", "-C", "cmake.define.BIGMODEL_EMULATE=ON",
               str(ROOT)]  # fmt: skip
    return Phase("build", "pip install without network or isolation, CUDA kernels and emulator", command, 300)


def read_reports(results: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """All phases' single checks and rows. A file that a stopped phase left half written is passed over."""
    checks: list[list[str]] = []
    rows: list[dict[str, Any]] = []
    for path in sorted(results.glob("*.json")):
        try:
            report = json.loads(path.read_text())
            checks += report["checks"]
            rows += report["rows"]
        except (KeyError, TypeError, ValueError):
            continue
    return checks, rows


def summarise(outcomes: dict[str, str], results: Path, host: dict[str, str]) -> bool:
    """Writes the CSV, prints the tables; whether all passed."""
    checks, rows = read_reports(results)
    with (results / "gpu_check.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({**host, **row} for row in rows)
    failed = [check for check in checks if check[1] != "passed"]
    print("\nop | shape | peer | ours us | peer us | speedup [p20, p80] | GB/s | TOPS")
    for r in rows:
        spread = f" [{r['p20']}, {r['p80']}]" if "p20" in r else ""
        print(f"{r['op']} | {r['shape']} | {r['peer']} | {r['ours_us']} | {r['peer_us']} | {r['speedup']}x{spread} | "
              f"{r.get('gbps', '')} | {r.get('tops', '')}")  # fmt: skip
    print(f"\n{len(checks) - len(failed)} of {len(checks)} single checks passed")
    for what, outcome in failed:
        print(f"  {what}: {outcome}")
    print("\nphase | outcome")
    for name, outcome in outcomes.items():
        print(f"{name} | {outcome}")
    return not any(outcome.startswith("FAILED") for outcome in outcomes.values())


def dry_run(planned: list[Phase], results: Path) -> int:
    built = find_spec("bigmodel_ext._C_cuda") is not None
    import torch

    print(f"python {platform.python_version()}, torch {torch.__version__}, CUDA of torch: {torch.version.cuda}")
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    print(f"CUDA kernels built: {'yes' if built else 'no (nvcc not found?)'}")
    imports = subprocess.run([sys.executable, "-c", "import gpu.__main__"], cwd=BENCH, capture_output=True, text=True)
    print("phases import: " + ("yes" if imports.returncode == 0 else f"no\n{imports.stderr}"))
    for phase in planned:
        reason = phase.missing()
        print(
            f"would run {phase.name} (at most {phase.limit_s:.0f} s): {phase.what}"
            + (f"; skipped: {reason}" * bool(reason))
        )
    return 0 if built and imports.returncode == 0 else 1


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--no-build", action="store_true", help="use the installed package")
    parser.add_argument("--only", nargs="+", metavar="PHASE", help="these phases")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("RESULTS_DIR") or ROOT / "runs/gpu-check"))
    options = parser.parse_args()
    results = options.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    planned = phases(results)
    names = [phase.name for phase in planned]
    if options.only and not set(options.only) <= set(names):
        parser.error(f"--only must name some of {', '.join(names)}")
    outcomes: dict[str, str] = {}
    if not options.no_build:
        outcomes["build"] = run_phase(build_phase(results), results, started + TOTAL_S)
        print(f"build: {outcomes['build']}", flush=True)
        if outcomes["build"] != "passed" and find_spec("bigmodel_ext") is None:
            return 1  # else the others still run, with the package that was installed before
    planned = [phase for phase in planned if not options.only or phase.name in options.only]
    if options.dry_run:
        return dry_run(planned, results)
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here (try --dry-run)", file=sys.stderr)
        return 2
    for stale in results.glob("*.json"):
        stale.unlink()
    for phase in planned:
        outcomes[phase.name] = run_phase(phase, results, started + TOTAL_S)
        print(f"{phase.name}: {outcomes[phase.name]} ({time.monotonic() - started:.0f} s)", flush=True)
    host = {"date": date.today().isoformat(), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    return 0 if summarise(outcomes, results, host) else 1


if __name__ == "__main__":
    sys.exit(main())
