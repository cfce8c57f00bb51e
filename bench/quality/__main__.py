"""Run the sections, print their rows, those that miss marked, and keep them in bench/results/quality.csv; exit 1 if any
misses."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import torch

import bench.quality
from bench.quality._row import Row
from bench.quality._table import write

SECTIONS = tuple(m.name for m in pkgutil.iter_modules(bench.quality.__path__) if not m.name.startswith("_"))
HEADER = ("case", "metric", "ours", "peer", "theirs", "wanted", "")


def _cells(row: Row) -> tuple[str, ...]:
    sign = "<=" if row.lower_is_better else ">="
    wanted = f"{sign} {row.factor:g}x" if row.factor != 1.0 else sign
    verdict = "holds" if row.holds else "MISSES"
    return row.case, row.metric, f"{row.ours:.4g}", row.peer, f"{row.theirs:.4g}", wanted, verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.quality", description="quality against peers, one table")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    chosen = parser.parse_args().sections or SECTIONS
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"SECTION must be one of {', '.join(SECTIONS)}, got {unknown[0]!r}")
    torch.manual_seed(0)
    missed = 0
    print("| " + " | ".join(("section", *HEADER)) + " |\n|" + " --- |" * (len(HEADER) + 1))
    for name in chosen:
        found = []
        for row in importlib.import_module(f"bench.quality.{name}").rows():
            missed += not row.holds
            found.append(row)
            print("| " + " | ".join((name, *_cells(row))) + " |", flush=True)
        write(name, found)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
