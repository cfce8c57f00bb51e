"""Which of several kernels is faster on a GPU, as measured: ``measured.json`` beside this, rows that ``make gpu-check``
writes. A row says, for an op on an architecture and a class of sizes, which backend is the fastest, by what ratio over
the next one, and when that was measured. What has no row has not been measured: the first kernel registered runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

TABLE = Path(__file__).parent / "measured.json"
CLASSES = {1: "1 row", 16: "2 to 16 rows", 128: "17 to 128 rows"}  # up to so many rows
MOST_ROWS = "over 128 rows"


@dataclass(frozen=True)
class Row:
    op: str
    architecture: str  # "90" for compute capability 9.0
    shape_class: str
    backend: str
    ratio: float  # time of the next best over this one's
    date: str

    def __str__(self) -> str:
        where = f"sm_{self.architecture}, {self.shape_class}"
        return f"{self.backend} measured {self.ratio:.2f}x the next best ({where}, {self.date})"


def shape_class(x: torch.Tensor) -> str:
    """By the rows of an op's first tensor."""
    rows = x.numel() // max(1, x.shape[-1]) if x.dim() else 1
    return next((name for most, name in CLASSES.items() if rows <= most), MOST_ROWS)


def architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def read(path: Path = TABLE) -> dict[tuple[str, str, str], Row]:
    """By op, architecture and class. Raises ValueError, which names the file, for what is not such a table."""
    try:
        rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
        classes = (*CLASSES.values(), MOST_ROWS)
        for row in rows:
            if row.shape_class not in classes or not row.ratio > 0:
                raise ValueError(f"row {row}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of measurements: {error}") from error
    return {(row.op, row.architecture, row.shape_class): row for row in rows}


def write(rows: list[Row], path: Path) -> None:
    """Add rows to the table at `path`, or replace what it has for the same op, architecture and class."""
    table = read(path) if path.exists() else {}
    table.update({(row.op, row.architecture, row.shape_class): row for row in rows})
    lines = [json.dumps(asdict(table[key])) for key in sorted(table)]
    path.write_text(
        '{\n  "rows": [' + ",".join(f"\n    {line}" for line in lines) + ("\n  " if lines else "") + "]\n}\n"
    )


_table = read()


def find(op: str, x: torch.Tensor) -> Row | None:
    """The row for an op whose first tensor is x."""
    if not _table or x.device.type != "cuda":
        return None
    return _table.get((op, architecture(x.device), shape_class(x)))


def has(op: str) -> bool:
    """Whether there is a row for the op at all: a call need not ask otherwise."""
    return any(key[0] == op for key in _table)
