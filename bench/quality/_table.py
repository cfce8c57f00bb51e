"""The quality rows on disk and as Markdown."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Collection
from pathlib import Path

from bench.quality._row import Row

FILE = Path(__file__).parent.parent / "results" / "quality.csv"
NAMES = ("section", "case", "metric", "ours", "peer", "theirs", "lower_is_better", "factor", "holds")
TITLES = {
    "oneshot": "One-shot pruning without retraining, against magnitude, Wanda and SparseGPT",
    "structural": "Structural pruning, against torch-pruning's importances",
    "controller": "The controller, against the best uniform ratio within the same budget",
    "distill": "Distillation, against the same student alone; a shared trunk against two students",
    "int8": "INT8, against torchao's dynamic int8",
    "hamiltonian": "Hamiltonian, against round to nearest, HQQ, alternating binary coding and GPTQ",
    "probabilistic": "Probabilistic, against round to nearest at the same coded size",
}


def read(path: Path = FILE) -> dict[str, list[Row]]:
    """By section, in the order of the file."""
    found: dict[str, list[Row]] = {}
    if path.exists():
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                row = Row(
                    line["case"], line["metric"], float(line["ours"]), line["peer"], float(line["theirs"]),
                    line["lower_is_better"] == "True", float(line["factor"]),
                )  # fmt: skip
                found.setdefault(line["section"], []).append(row)
    return found


def write(section: str, rows: Collection[Row], path: Path = FILE) -> None:
    """Replace a section's rows."""
    every = {**read(path), section: list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(NAMES)
        for name in sorted(every):
            for r in every[name]:
                table.writerow(
                    (name, r.case, r.metric, f"{r.ours:.6g}", r.peer, f"{r.theirs:.6g}", r.lower_is_better, r.factor,
                     r.holds)
                )  # fmt: skip


def _name(peer: str) -> str:
    """Without the bits that it took, or what ratio was the best."""
    return re.sub(r" \(\d[\d.]*\)$", "", peer).split(": ")[0]


def markdown(path: Path = FILE) -> list[str]:
    """One line a section and peer: how many cases hold, and the median of ours over theirs."""
    found = read(path)
    if not found:
        return []
    lines = ["| method, peer | metric | cases that hold | ours over theirs, median |", "| --- | --- | --- | --- |"]
    for section, rows in found.items():
        lines.append(f"| **{TITLES.get(section, section)}** | | | |")
        for peer, metric in dict.fromkeys((_name(row.peer), row.metric) for row in rows):
            own = [row for row in rows if (_name(row.peer), row.metric) == (peer, metric)]
            held = sum(row.holds for row in own)
            count = f"{held} of {len(own)}" if held == len(own) else f"**{held} of {len(own)}**"
            sign = "at most" if own[0].lower_is_better else "at least"
            wanted = f" ({sign} {own[0].factor:g} wanted)" if own[0].factor != 1.0 else f" ({sign} 1)"
            ratios = [row.ours / row.theirs for row in own if row.theirs]
            middle = f"{statistics.median(ratios):.3g}{wanted}" if ratios else "-"
            lines.append(f"| {peer} | {metric} | {count} | {middle} |")
    return lines
