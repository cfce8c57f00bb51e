"""Is any layer that conversion keeps slower than dense? Every shape of the suites is converted by every config, and
each decision is held against a second timing that knows nothing of the first: longer rounds, other activations.

    python -m bench.never_slower [--quick] [--shape NxK ...] [--config NAME ...] [--threads 1] [--csv FILE]

A row is one shape, config and M. `measured` is the gain that conversion saw and `kept` whether the form is kept when
measured at this M alone; `default` whether the config as it is (1 and 128 rows) converts the layer. `later` is the
second timing. The worst kept row must be above 0.97 (exit code 1 if not).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import bigmodel_ext as bm
import torch
from bigmodel_ext import _choose, _gains
from bigmodel_ext.bench import host
from bigmodel_ext.bench.harness import ratio
from torch import nn

SHAPES = {
    "Llama-3-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "BERT-base": ((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    "MiniLM": ((1152, 384), (384, 384), (1536, 384), (384, 1536)),
}
CONFIGS = {
    "int8": (bm.quantize_, bm.Int8DynamicActivationInt8WeightConfig, {}),
    **{
        f"sparse {s:.0%}": (bm.sparsify_, bm.UnstructuredSparseWeightConfig, {"sparsity": s})
        for s in (0.5, 0.7, 0.8, 0.9, 0.95)
    },
    **{f"int8 1x4 {s:.0%}": (bm.sparsify_, bm.Int8BlockSparseWeightConfig, {"sparsity": s}) for s in (0.5, 0.9)},
}
QUICK = ("int8", "sparse 50%", "sparse 90%", "int8 1x4 50%")
ROWS = (1, 8, 128)
ALLOWED = 0.97
TURN_S = 1e-3
LATER_S = 0.5  # about as long is spent on the second timing of one shape and M


def _converted(dense: nn.Linear, config: str, **rows: tuple[int, ...]) -> nn.Module:
    convert, kind, arguments = CONFIGS[config]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was kept dense
        return convert(nn.Sequential(dense), kind(**arguments, **rows))[0]


def _seconds(form: nn.Module, x: torch.Tensor, clock: Callable[[], float]) -> float:
    """Of a call, in a turn of at least TURN_S that begins with an untimed one."""
    form(x)
    start = clock()
    for calls in itertools.count(1):
        form(x)
        if clock() - start > TURN_S:
            return (clock() - start) / calls
    raise AssertionError


def _later(dense: nn.Linear, forms: dict[str, nn.Module], m: int) -> dict[str, list[float]]:
    """Seconds of a call in each round, all forms taking turns: on one thread that thread's own time, so that other
    processes do not decide."""
    x, clock = (
        torch.randn(m, dense.in_features),
        time.thread_time if torch.get_num_threads() == 1 else time.perf_counter,
    )
    all_forms = {"dense": dense, **forms}
    times: dict[str, list[float]] = {name: [] for name in all_forms}
    start = time.perf_counter()
    with torch.inference_mode():
        while len(times["dense"]) < 3 or (time.perf_counter() - start < LATER_S and len(times["dense"]) < 21):
            for name, form in all_forms.items():
                times[name].append(_seconds(form, x, clock))
    return times


def cases(shapes: list[tuple[str, int, int]], configs: list[str], ms: tuple[int, ...]) -> list[dict[str, object]]:
    rows = []
    for model, n, k in shapes:
        dense = nn.Linear(k, n)
        start = time.perf_counter()
        forms, default = dict[str, nn.Module](), dict[str, bool]()
        for config in configs:
            form = _converted(dense, config)
            default[config] = form is not dense
            forms[config] = form if default[config] else _converted(dense, config, rows=())
        converting = time.perf_counter() - start
        print(f"{model} {n}x{k}: {len(configs)} conversions in {converting:.1f} s", flush=True)
        for m in ms:
            decisions = {config: _choose.not_slower(dense, [form], (m,)) for config, form in forms.items()}
            times = _later(dense, forms, m)
            for config, form in forms.items():
                later = ratio(times["dense"], times[config])
                row = {
                    "model": model, "n": n, "k": k, "config": config, "m": m, "default": default[config],
                    "kept": decisions[config] is form,
                    "measured": round(_gains.over_dense([form], m, dense, lambda d=dense: d)[0], 3),
                    "later": round(later.median, 3), "p20": round(later.p20, 3), "p80": round(later.p80, 3),
                }  # fmt: skip
                rows.append(row)
                mark = (
                    "" if row["kept"] else "  dense" if later.median < 1 else "  dense, though later it was not slower"
                )
                print(
                    f"  {n:>5}x{k:<5} M={m:<4} {config:14s} measured {row['measured']:7.2f}x"
                    f"  later {later.median:7.2f}x [{later.p20:.2f}, {later.p80:.2f}]{mark}",
                    flush=True,
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="BERT and MiniLM shapes, 1 and 128 rows, four configs")
    parser.add_argument("--shape", action="append", metavar="NxK", help="this shape only; may be given several times")
    parser.add_argument("--config", action="append", choices=CONFIGS, help="this config only; likewise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    os.environ["BIGMODEL_CACHE"] = "off"  # decisions of today
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = ("BERT-base", "MiniLM") if args.quick else SHAPES
    configs = args.config or (list(QUICK) if args.quick else list(CONFIGS))
    facts = host.facts()
    print(f"{facts['cpu']} · {facts['isa']} · {facts['threads']} thread(s) · torch {facts['torch']}")
    wanted = args.shape or [f"{n}x{k}" for model in models for n, k in SHAPES[model]]
    shapes = [(model, n, k) for model in SHAPES for n, k in SHAPES[model] if f"{n}x{k}" in wanted]
    rows = cases(shapes, configs, (1, 128) if args.quick else ROWS)
    if args.csv:
        new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, [*facts, *rows[0]])
            if new:
                writer.writeheader()
            writer.writerows({**facts, **row} for row in rows)
    kept = sorted((row for row in rows if row["kept"]), key=lambda row: float(str(row["later"])))
    print(f"{len(kept)} of {len(rows)} kept; the slowest of them, by the second timing:")
    for row in kept[:5]:
        print("  {n}x{k} M={m} {config}: measured {measured}x, later {later}x [{p20}, {p80}]".format(**row))
    return 0 if float(str(kept[0]["later"])) >= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
