"""The command line: ``bigmodel compress``, ``bigmodel bench`` and ``bigmodel info``.

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 130 stopped by Ctrl-C. Errors are one line on standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import bigmodel_ext

TRAIN_PACKAGES = {"sklearn": "scikit-learn", "kornia": "kornia", "matplotlib": "matplotlib", "rich": "rich"}


class UsageError(Exception):
    """Wrong usage, told in one line."""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class _Task(argparse.Action):
    """The option alone lists what there is."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if values is None:
            from bigmodel_ext.train.tasks import TASKS

            parser.error(f"--task must be one of {', '.join(TASKS)}")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bigmodel", description="Compressed PyTorch models that are smaller and faster.")
    parser.add_argument("--version", action="version", version=f"bigmodel_ext {bigmodel_ext.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{compress,bench,info}")
    compress = commands.add_parser("compress", help="train a model, compress it, save and check it, and report")
    compress.add_argument("--task", required=True, action=_Task, nargs="?", help="what to train on (digits, text)")
    compress.add_argument("--out", required=True, type=Path, help="folder for model, report and plots")
    compress.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        help="how much of the task's metric may be lost, in [0, 1] (%(default)s)",
    )
    compress.add_argument(
        "--cost", choices=("latency", "bytes"), default="latency", help="what to make small (%(default)s)"
    )
    compress.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    compress.add_argument("--threads", type=int, help="for training (torch's default); latencies are always on one")
    compress.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it runs; accuracies mean nothing"
    )
    compress.add_argument(
        "--resume", action="store_true", help="keep the state in OUT/state, and go on where a killed run was"
    )
    compress.set_defaults(run=_compress)
    _add_bench(commands.add_parser("bench", help="time ours against other packages' kernels on this machine"))
    info = commands.add_parser("info", help="versions, instruction set, threads, backends")
    info.set_defaults(run=_info)
    return parser


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("suites", nargs="*", metavar="SUITE", help="see --list (default: all)")
    size = bench.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few shapes, about a minute")
    size.add_argument("--full", action="store_true", help="every shape, hours")
    bench.add_argument("--peers", default="", help="parts of the names of those to time, as onnx,torch (default: all)")
    bench.add_argument(
        "--shapes", default="", help="MxNxK or NxK, or ROWSxFEATURES of a dropout, instead of the suite's"
    )
    bench.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    bench.add_argument("--rounds", type=int, help="of every case (default: as many as its time allows)")
    bench.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the CSV files (%(default)s)")
    bench.add_argument("--plot", action="store_true", help="only draw what the CSV files in --out hold")
    bench.add_argument("--list", action="store_true", help="only list suites and peers")
    bench.set_defaults(run=_bench)


def _require_packages() -> None:
    missing = [package for module, package in TRAIN_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"compress needs {', '.join(missing)}: pip install 'bigmodel_ext[train]'")


def _check(args: argparse.Namespace) -> Any:
    """The task, after everything that can be wrong about the arguments has been looked at."""
    if not 0.0 <= args.max_drop <= 1.0:
        raise UsageError(f"--max-drop must be in [0, 1], got {args.max_drop}")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2^32), got {args.seed}")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {args.threads}")
    from bigmodel_ext.compress.output import usable_folder
    from bigmodel_ext.train import tasks

    try:
        task = tasks.get(args.task)
        _require_packages()
        usable_folder(args.out)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    return task


def _compress(args: argparse.Namespace) -> int:
    task = _check(args)
    from bigmodel_ext.compress.job import compress
    from bigmodel_ext.train.loop import NonFiniteLossError
    from bigmodel_ext.train.progress import for_stream

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        report = compress(
            task, args.out, seed=args.seed, max_drop=args.max_drop, cost=args.cost, quick=args.quick,
            state=args.out / "state" if args.resume else None, progress=for_stream(),
        )  # fmt: skip
    except (NonFiniteLossError, RuntimeError, ValueError, OSError) as error:
        print(f"bigmodel compress: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    _show(report, args.out)
    return 0 if report["reloaded"]["bit_equal"] else 1


def _show(report: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from bigmodel_ext.compress.report import header, rows, verdict
    from bigmodel_ext.train import tasks

    show, names = tasks.get(report["task"]).metric.show, header(report)

    print()
    if sys.stdout.isatty():
        table = Table(box=None, header_style="bold", padding=(0, 2))
        for i, name in enumerate(names):
            table.add_column(name, justify="right" if i else "left")
        for cells in rows(report, show):
            table.add_row(*cells)
        Console().print(table)
    else:
        for cells in (names, *rows(report, show)):
            print(f"{cells[0]:10s}" + "".join(f"{cell:>12s}" for cell in cells[1:]))
    print()
    for line in verdict(report, show):
        print(line)
    print(f"report: {out / 'report.md'}   ({report['seconds']:.0f} s)")


def _bench(args: argparse.Namespace) -> int:
    from bigmodel_ext.bench import main as bench
    from bigmodel_ext.bench.selection import Selection, Size, parse_shapes

    unknown = [name for name in args.suites if name not in bench.SUITES]
    if unknown:
        raise UsageError(f"SUITE must be one of {', '.join(bench.SUITES)}, got {unknown[0]!r}")
    for name in ("threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    try:
        shapes = parse_shapes(args.shapes) if args.shapes else ()
    except ValueError as error:
        raise UsageError(f"--shapes {error}") from error
    if args.list:
        bench.show_list()
        return 0
    if args.plot:
        return _plot(args.out)
    size: Size = "quick" if args.quick else "full" if args.full else "default"
    wanted = tuple(part.strip() for part in args.peers.split(",") if part.strip())
    selection = Selection(size, wanted, shapes, args.rounds)
    try:
        for path in bench.run(args.suites or tuple(bench.SUITES), selection, args.out, args.threads):
            print(f"rows: {path}")
    except (ArithmeticError, AssertionError, RuntimeError, OSError) as error:
        print(f"bigmodel bench: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _plot(out: Path) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("bench --plot needs matplotlib: pip install 'bigmodel_ext[bench]'")
    from bigmodel_ext.bench import plot

    drawn = plot.draw(out)
    for path in drawn:
        print(f"drawn: {path}")
    if not drawn:
        print(f"bigmodel bench: error: no rows to draw below {out}", file=sys.stderr)
    return 0 if drawn else 1


def _info(args: argparse.Namespace) -> int:
    from bigmodel_ext import _dispatch, _gains, _native

    gains = _gains.file()
    forced = _dispatch.forced_backend()
    facts = {
        "bigmodel_ext": bigmodel_ext.__version__,
        "torch": torch.__version__,
        "instruction set": f"{_native.active_isa()} (this processor has {', '.join(_native.available_isas())})",
        "threads": str(torch.get_num_threads()),
        "backends": forced or ", ".join(_dispatch.backends()),
        "measured gains": "not kept (BIGMODEL_CACHE=off)" if gains is None else f"{_gains.kept()} in {gains}",
    }
    for name, value in facts.items():
        print(f"{name:16s} {value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module's notes for what it returns."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UsageError as error:
        print(f"bigmodel {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bigmodel: stopped; no result is half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
