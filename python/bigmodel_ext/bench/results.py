"""The CSV files: one per machine and suite. A run replaces the rows that it measures again and keeps the others."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bigmodel_ext.bench import host

COLUMNS = (
    "date", "commit", "cpu", "isa", "threads", "torch", "packages", "load", "op", "shape", "m", "n", "k", "sparsity",
    "dtype", "cache", "ours", "peer", "peer_dtype", "ours_us", "peer_us", "ours_mb", "peer_mb", "speedup", "p20", "p80",
    "rounds", "gops", "real_gops", "gbps", "bytes", "limit", "limit_us", "limit_percent", "peak_gops",
    "memory_gbps",
)  # fmt: skip
KEY = ("cpu", "isa", "threads", "op", "shape", "cache", "ours", "peer")
Row = Mapping[str, object]


def folder(out: Path) -> Path:
    return out / host.slug()


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in KEY)


def update(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` into the file. Readers, and a run that is stopped, never meet half a file."""
    new = {_key(row): row for row in rows}
    cases = {key[:-2] for key in new}  # a case that is measured again loses all its rows, of peers no longer there too
    kept = [row for row in read(path) if _key(row)[:-2] not in cases]
    merged: list[Row] = [*kept, *new.values()]
    columns = [*COLUMNS, *(name for name in dict.fromkeys(k for row in merged for k in row) if name not in COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(merged)
    os.replace(partial, path)
