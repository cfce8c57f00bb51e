"""Writes the README's table of figures from bench/results/*.csv, so that no figure stands there that no row holds."""

from __future__ import annotations

import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
PLAIN = ("torch float32", "F.linear", "eager")
NO_PEER = ("unpacked", "memcpy", "F.linear, no bias")  # our own op, a limit, and another function: in the CSV only
BEGIN, END = "<!-- figures: written by `make figures` from bench/results -->", "<!-- end of figures -->"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def heading(row: dict[str, str]) -> str:
    return (
        f"{row['cpu']}, {row['isa']}, {row['threads']} thread(s), torch {row['torch']}, {row['date']} ({row['commit']})"
    )


def cell(row: dict[str, str] | None, named: bool = False) -> str:
    if row is None:
        return ""
    ratio = f"{float(row['speedup']):.2f}x"
    text = f"**{ratio}**" if float(row["speedup"]) < 1 else ratio
    return text + (f" {row['peer']}" if named else "") + f" [{float(row['p20']):.2f}, {float(row['p80']):.2f}]"


def table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each op and shape: against what a user has now, and against the best of the other peers."""
    cases: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        cases.setdefault((row["op"], row["shape"]), {})[row["peer"]] = row
    lines = ["| op | shape | against torch | against the best other peer |", "|---|---|---|---|"]
    for (op, shape), peers in cases.items():
        plain = next(row for name, row in peers.items() if name in PLAIN)
        others = [row for name, row in peers.items() if name not in PLAIN and name not in NO_PEER]
        best = min(others, key=lambda row: float(row["speedup"]), default=None)
        lines.append(f"| {op} | {shape} | {cell(plain)} | {cell(best, named=True)} |")
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
