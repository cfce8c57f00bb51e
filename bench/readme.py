"""Writes the README's table of figures from bench/results/*.csv, so that no figure stands there that no row holds."""

from __future__ import annotations

import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: written by `make figures` from bench/results -->", "<!-- end of figures -->"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def heading(row: dict[str, str]) -> str:
    return (
        f"{row['cpu']}, {row['isa']}, {row['threads']} thread(s), torch {row['torch']}, {row['date']} ({row['commit']})"
    )


def table(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| op | shape | against | speed-up (median) | p20 to p80 |", "|---|---|---|---:|---:|"]
    for row in rows:
        mark = "**" if float(row["speedup"]) < 1 else ""
        speedup = f"{mark}{float(row['speedup']):.2f}x{mark}"
        lines.append(f"| {row['op']} | {row['shape']} | {row['peer']} | {speedup} | {row['p20']} to {row['p80']} |")
    return lines


def render() -> str:
    lines = [BEGIN, ""]
    for path in sorted(RESULTS.glob("*.csv")):
        rows = read(path)
        if rows:
            lines += [f"**{path.stem}**: {heading(rows[0])}", "", *table(rows), ""]
    return "\n".join([*lines, END])


def main() -> None:
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(before + render() + rest.split(END)[1])


if __name__ == "__main__":
    main()
