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
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "softplus")
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = ((0, 5), (1, 1), (1, 7), (3, 8), (7, 255), (8, 256), (5, 1000), (33, 4096), (129, 513))
TIMED = ((64, 768), (64, 4096), (4096, 768), (4096, 1024), (4096, 4096), (16384, 1024), (16384, 4096))
SEED = 0x123456789ABCDEF
P = 0.3
# On the device the arithmetic is the C library's of another vendor: a few units in the last place of the output dtype.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1.6e-2, "float16": 2e-3}
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


def check_values() -> None:
    """Every activation, dtype, shape, with and without bias and residual, forward and backward, against the CPU."""
    import torch

    raw = torch.ops.bigmodel_ext
    seed = torch.tensor(SEED)
    for name in DTYPES:
        dtype = getattr(torch, name)
        for shape in SHAPES:
            x, residual, grad = ((torch.randn(shape) * 3).to(dtype) for _ in range(3))
            for bias in (None, torch.randn(shape[1]), torch.randn(shape[1]).to(dtype)):
                for r in (None, residual):
                    for activation in ACTIVATIONS:
                        args = (x, bias, r, seed, P, activation)
                        back = (grad, x, bias, seed, P, activation)
                        for op, a in ((raw.fused_dropout, args), (raw.fused_dropout_backward, back)):
                            expected = op(*a)
                            ours = op(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in a)).cpu()
                            torch.testing.assert_close(ours, expected, rtol=TOLERANCE[name], atol=TOLERANCE[name])


def check_masks() -> None:
    """Bit-equal masks, for sizes around a warp's tile of 256 elements and for misaligned addresses."""
    import torch

    raw = torch.ops.bigmodel_ext
    for name in DTYPES:
        for numel in (1, 7, 8, 9, 255, 256, 257, 4095, 70_003, 3_000_001):
            for offset in (0, 1, 3):
                for p in (1e-9, 1 / 65536, 0.5, 1 - 1e-9, 1.0):
                    x = torch.ones(numel + offset, dtype=getattr(torch, name))
                    args = (None, None, torch.tensor(SEED), p, "none")
                    expected = raw.fused_dropout(x[offset:], *args)
                    device_args = (None, None, torch.tensor(SEED, device="cuda"), p, "none")
                    ours = raw.fused_dropout(x.cuda()[offset:], *device_args)
                    assert torch.equal(ours.cpu(), expected), (
                        f"mask differs: {name}, numel={numel}, offset={offset}, p={p}"
                    )


def check_special_values() -> None:
    """NaN and infinities as on the CPU, and exactly the residual where dropped."""
    import math

    import torch

    raw = torch.ops.bigmodel_ext
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45] * 64)
    residual = torch.randn(512)
    for activation in ACTIVATIONS:
        for seed in (None, torch.tensor(SEED)):
            p = 0.0 if seed is None else P
            args = (x, None, residual, seed, p, activation)
            expected = raw.fused_dropout(*args)
            ours = raw.fused_dropout(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in args)).cpu()
            torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def check_side_stream() -> None:
    """On a stream of its own the kernel waits for what that stream does before it."""
    import torch
    from bigmodel_ext import functional as F

    x = torch.randn(4096, 4096, device="cuda")
    expected = F.fused_dropout(x * 2 + 1, P, seed=SEED)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ours = F.fused_dropout(x * 2 + 1, P, seed=torch.tensor(SEED, device="cuda"))
    stream.synchronize()
    assert torch.equal(ours, expected), "the result on a side stream differs"


def check_graph_capture() -> None:
    """A captured graph reads its seed from device memory: replays draw new masks, equal to eager ones for that seed."""
    import torch
    from bigmodel_ext import functional as F

    x, seed = torch.randn(257, 1001, device="cuda"), torch.tensor(1, device="cuda")
    F.fused_dropout(x, P, seed=seed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = F.fused_dropout(x, P, activation="gelu", seed=seed)
    for value in (1, 2, SEED):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(out, F.fused_dropout(x, P, activation="gelu", seed=value)), (
            f"replay with seed {value} differs"
        )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = F.fused_dropout(x, P)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append((out != 0).clone())
    assert not torch.equal(*masks), "replays of a graph that draws its seed must differ"


def check_gradients() -> None:
    """Autograd on the device: the forward's mask, the gradient of every argument."""
    import torch
    from bigmodel_ext import _dispatch
    from bigmodel_ext import functional as F

    tensors = [torch.randn(s, device="cuda", requires_grad=True) for s in ((64, 96), (96,), (64, 96))]
    x, bias, residual = tensors
    out = F.fused_dropout(x, 0.5, bias=bias, residual=residual)
    dx, dbias, dresidual = torch.autograd.grad(out, tensors, torch.ones_like(out))
    keep = (out != residual).float()
    assert torch.equal(dx, keep * 2), "dx does not use the forward's mask"
    torch.testing.assert_close(dbias, dx.sum(0))
    assert torch.equal(dresidual, torch.ones_like(residual))
    args = (x, bias, residual, torch.tensor(1, device="cuda"), 0.5, "none")
    assert _dispatch.explain("fused_dropout", *args).backend == "cuda", "the CUDA backend was not chosen"


def check_errors() -> None:
    import torch

    x = torch.zeros(4, 6, device="cuda")
    for args in ((torch.zeros(6), None, torch.tensor(1, device="cuda")), (None, None, torch.tensor(1))):
        refusal = ""
        try:
            torch.ops.bigmodel_ext.fused_dropout(x, *args, P, "none")
        except TypeError as error:
            refusal = str(error)
        assert "must be on a CUDA device" in refusal, f"a CPU tensor among CUDA tensors was not refused: {refusal!r}"


CHECKS: tuple[Callable[[], None], ...] = (
    check_gradients,
    check_masks,
    check_values,
    check_special_values,
    check_side_stream,
    check_graph_capture,
    check_errors,
)


def run_checks() -> list[tuple[str, str]]:
    results = []
    for check in CHECKS:
        try:
            check()
            results.append((check.__name__, "passed"))
        except Exception as error:
            traceback.print_exc()
            results.append((check.__name__, f"FAILED: {str(error).strip().splitlines()[0] if str(error) else error!r}"))
        print(*results[-1], flush=True)
    return results


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
