"""Builds the package where it stands, checks the CUDA fused dropout against the CPU's mask, times it.

    python bench/gpu_check.py [--dry-run] [--no-build] [--results DIR]

Needs a CUDA device, nvcc, and torch with CUDA; nothing is downloaded. `--dry-run` needs no device: it says what would
run, builds and imports. Logs and a CSV go to --results (or $RESULTS_DIR); the last thing printed is the summary table.
Exit status: 0 all checks passed, 1 a check or the build failed, 2 no device.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from gpu_checks import CHECKS, DTYPES, SEED, P, run_checks

ROOT = Path(__file__).resolve().parent.parent
TIMED = ((64, 768), (64, 4096), (4096, 768), (4096, 1024), (4096, 4096), (16384, 1024), (16384, 4096))
MIN_ROUND_S = 2e-3


def build(log: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--force-reinstall",
    ]
    result = subprocess.run(
        [*command, "-C", "cmake.define.BIGMODEL_CUDA=AUTO", "."], cwd=ROOT, capture_output=True, text=True
    )
    log.write_text(result.stdout + result.stderr)
    if result.returncode:
        sys.exit(f"The build failed; see {log}:\n{(result.stdout + result.stderr)[-3000:]}")


def _device_seconds(call: Callable[[], object], repeats: int) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def _candidates(m: int, n: int, name: str) -> Iterator[tuple[str, int, dict[str, Callable[[], object]]]]:
    """(what, bytes moved, candidates); ours first. `copy` moves as much as plain dropout."""
    import torch
    import torch.nn.functional as TF
    from bigmodel_ext import functional as F

    dtype = getattr(torch, name)
    x, residual, grad = (torch.randn(m, n, device="cuda").to(dtype) for _ in range(3))
    bias, seed, out = torch.randn(n, device="cuda").to(dtype), torch.tensor(SEED, device="cuda"), torch.empty_like(x)
    size = x.numel() * x.element_size()
    raw = torch.ops.bigmodel_ext
    copy = lambda: out.copy_(x)  # noqa: E731
    yield "plain fwd", 2 * size, {
        "ours": lambda: F.fused_dropout(x, P), "eager": lambda: TF.dropout(x, P), "copy": copy}  # fmt: skip
    yield "bias+gelu+residual fwd", 3 * size, {
        "ours": lambda: F.fused_dropout(x, P, bias=bias, activation="gelu", residual=residual),
        "eager": lambda: residual + TF.dropout(TF.gelu(x + bias), P), "copy": copy}  # fmt: skip
    yield "gelu backward", 3 * size, {
        "ours": lambda: raw.fused_dropout_backward(grad, x, bias, seed, P, "gelu"), "copy": copy}  # fmt: skip


def time_all() -> list[dict[str, object]]:
    import torch

    rows: list[dict[str, object]] = []
    host = {"date": date.today().isoformat(), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for m, n in TIMED:
        for name in DTYPES[:2]:
            for what, moved, candidates in _candidates(m, n, name):
                repeats = {
                    k: max(1, int(MIN_ROUND_S / max(_device_seconds(c, 20), 1e-7))) for k, c in candidates.items()
                }
                times: dict[str, list[float]] = {k: [] for k in candidates}
                for _ in range(11):
                    for k, call in candidates.items():
                        times[k].append(_device_seconds(call, repeats[k]))
                ours = statistics.median(times["ours"])
                copied = 2 * m * n * (4 if name == "float32" else 2) / statistics.median(times["copy"])
                for peer in list(candidates)[1:]:
                    ratios = sorted(a / b for a, b in zip(times[peer], times["ours"], strict=True))
                    rows.append({
                        **host, "op": f"dropout {what}", "shape": f"{m}x{n}", "dtype": name, "peer": peer,
                        "ours_us": round(ours * 1e6, 2), "peer_us": round(statistics.median(times[peer]) * 1e6, 2),
                        "speedup": round(statistics.median(ratios), 3), "p20": round(ratios[2], 3),
                        "p80": round(ratios[8], 3), "gbps": round(moved / ours / 1e9, 1),
                        "of_copy_bandwidth": round(moved / ours / copied, 3),
                    })  # fmt: skip
    return rows


def report(checks: list[tuple[str, str]], rows: list[dict[str, object]], results: Path) -> None:
    if rows:
        with (results / "gpu_check.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print("\nop | shape | dtype | peer | ours us | speedup [p20, p80] | GB/s | of copy's bandwidth")
    for r in rows:
        print(
            f"{r['op']} | {r['shape']} | {r['dtype']} | {r['peer']} | {r['ours_us']} | {r['speedup']}x"
            f" [{r['p20']}, {r['p80']}] | {r['gbps']} | {r['of_copy_bandwidth']:.0%}"
        )
    for name, outcome in checks:
        print(f"{name}: {outcome}")


def dry_run() -> None:
    import importlib.util

    import torch
    from bigmodel_ext import _native, functional  # noqa: F401

    built = importlib.util.find_spec("bigmodel_ext._C_cuda") is not None
    print(f"python {platform.python_version()}, torch {torch.__version__}, CUDA of torch: {torch.version.cuda}")
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    print(f"CUDA kernels built: {'yes' if built else 'no (nvcc not found?)'}")
    for check in CHECKS:
        print(f"would run {check.__name__}: {(check.__doc__ or 'errors name the argument').splitlines()[0]}")
    print(f"would time {len(TIMED)} shapes x {DTYPES[:2]} against eager torch and a device copy")
    if not built:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--no-build", action="store_true", help="use the installed package")
    parser.add_argument(
        "--results", type=Path, default=Path(os.environ.get("RESULTS_DIR") or ROOT / "runs" / "gpu-check")
    )
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.no_build:
        build(options.results / "build.log")
    if options.dry_run:
        return dry_run()
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here (try --dry-run)", file=sys.stderr)
        sys.exit(2)
    from bigmodel_ext import _native

    if _native.load_cuda() is None:
        sys.exit(f"gpu-check: the CUDA kernels were not built; see {options.results / 'build.log'}")
    torch.manual_seed(0)
    checks = run_checks()
    rows = time_all() if all(outcome == "passed" for _, outcome in checks) else []
    report(checks, rows, options.results)
    sys.exit(0 if rows else 1)


if __name__ == "__main__":
    main()
