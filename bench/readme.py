"""Writes the README's figures from bench/results/<machine>/*.csv, so that no figure stands there that no row holds."""

from __future__ import annotations

import math
from pathlib import Path

from bigmodel_ext.bench.results import read

from bench.quality import _table as quality

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: written by `make figures` from bench/results -->", "<!-- end of figures -->"

QUALITY_BEGIN = "<!-- quality: written by `make figures` from bench/results/quality.csv -->"
QUALITY_END = "<!-- end of quality -->"

Rows = list[dict[str, str]]
PLAIN = ("torch fp32", "torch float32", "torch eager")
CSR = "torch CSR"  # sparse, with a column of its own
FORWARD = "forward pass, M=128"  # of packing: what it costs in forward passes
NO_PEER = ("memcpy", "torch fp32, no bias", FORWARD, "reference", CSR)  # a limit, another function, our own
TITLES = {
    "model": "Encoders end to end", "int8": "INT8 linear", "sparse": "Sparse linear",
    "blocks": "Block-sparse linear", "conv": "Convolutions", "dropout": "Fused dropout",
    "norm": "Dropout, residual and norm", "overhead": "What a call costs at 1x16",
    "binary_coded": "Binary-coded linear", "weight_only": "INT8 weight-only linear",
}  # fmt: skip
PICTURES = {
    "sparse": ("sparsity.png", "speed-up against the share of zeros"),
    "int8": ("roofline.png", "operations per second against operations per byte, with the machine's measured limits"),
    "dropout": ("dropout.png", "bytes per second of dropout and of a copy"),
}
UNFOLDED = 10  # longer tables are folded


def cases(rows: Rows) -> list[dict[str, dict[str, str]]]:
    """The rows of each case and of each of ours, by peer."""
    found: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("threads", "isa", "op", "shape", "cache", "ours"))
        found.setdefault(key, {})[row["peer"]] = row
    return list(found.values())


def speedup(row: dict[str, str]) -> float:
    return float(row["speedup"])


def best(peers: dict[str, dict[str, str]], same_dtype: bool = True) -> dict[str, str] | None:
    """The fastest of the others: of ours' dtype, or whatever they compute in."""
    rows = [
        row
        for name, row in peers.items()
        if name not in NO_PEER and (not same_dtype or not row["peer_dtype"] or row["peer_dtype"] == row["dtype"])
    ]
    if same_dtype:
        rows = [row for row in rows if row["peer"] not in PLAIN] or rows
    return min(rows, key=speedup, default=None)


def bfloat16(peers: dict[str, dict[str, str]]) -> dict[str, str] | None:
    return peers.get("torch bf16") or peers.get("torch bfloat16")


def shape_of(row: dict[str, str]) -> str:
    cold = " cold" if row["cache"] == "cold" else ""
    return row["shape"] + cold + (f", {row['threads']} threads" if row["threads"] != "1" else "")


def cell(row: dict[str, str] | None, named: bool = False) -> str:
    if row is None:
        return ""
    ratio = f"{speedup(row):.2f}x"
    text = f"**{ratio}**" if speedup(row) < 1 else ratio
    return text + (f" {row['peer']}" if named else "") + f" [{float(row['p20']):.2f}, {float(row['p80']):.2f}]"


def mean(rows: Rows) -> float:
    """Geometric, of the speed-ups."""
    return math.exp(sum(math.log(speedup(row)) for row in rows) / len(rows))


def _markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    """A table without the columns that are empty throughout."""
    shown = [i for i in range(len(header)) if any(line[i] for line in lines)]
    rows = [header, tuple("---" for _ in header), *lines]
    return ["| " + " | ".join(row[i] for i in shown) + " |" for row in rows]


def _folded(title: str, table: list[str]) -> list[str]:
    if len(table) - 2 <= UNFOLDED:
        return [f"**{title}**", "", *table, ""]
    return ["<details>", f"<summary><b>{title}</b></summary>", "", *table, "", "</details>", ""]


def _line(peers: dict[str, dict[str, str]]) -> tuple[str, ...]:
    row = next(iter(peers.values()))
    plain = next((peers[name] for name in PLAIN if name in peers), None)
    other = best(peers)
    if other is plain:
        other = None
    limit = f"{float(row['limit_percent']):.0f} %" if row["limit_percent"] else ""
    passes = f"{1 / speedup(peers[FORWARD]):.2f}" if FORWARD in peers else ""
    return (
        row["op"], shape_of(row), cell(plain), cell(other, named=True), cell(bfloat16(peers)), cell(peers.get(CSR)),
        cell(peers.get("memcpy")), passes, limit,
    )  # fmt: skip


HEADER = (
    "op", "shape", "torch", "best other of the same dtype", "torch bfloat16", CSR, "copy", "in forward passes, M=128",
    "of the limit",
)  # fmt: skip


def table(rows: Rows) -> list[str]:
    return _markdown(HEADER, [_line(peers) for peers in cases(rows)])


def model_table(rows: Rows) -> list[str]:
    lines = []
    for peers in cases(rows):
        row = next(iter(peers.values()))
        dynamic = min((r for name, r in peers.items() if "dynamic" in name), key=speedup, default=None)
        small = (
            f"{float(row['ours_mb']):.0f} of {float(peers[PLAIN[0]]['peer_mb']):.0f} MB" if PLAIN[0] in peers else ""
        )
        lines.append((
            f"{row['op'].removeprefix('encoder ')} {row['shape']}", row["ours"], cell(peers.get(PLAIN[0])),
            cell(bfloat16(peers)), cell(dynamic), f"{float(row['limit_percent']):.0f} %", small,
        ))  # fmt: skip
    header = ("encoder", "ours", "torch float32", "torch bfloat16", "torch's best dynamic int8", "of the limit", "size")
    return _markdown(header, lines)


def summary(rows: Rows) -> str:
    """How the cases of a suite stand against the best peer of each."""
    rivals = [row for peers in cases(rows) if (row := best(peers)) is not None]
    if not rivals:
        return ""
    won = sum(speedup(row) >= 1 for row in rivals)
    return (
        f"at least as fast as the best other of the dtype in {won} of {len(rivals)}, geometric mean {mean(rivals):.2f}x"
    )


def dense_wins(suites: dict[str, Rows]) -> list[str]:
    """A line for each case in which some dense layer, of whatever dtype, is faster than ours."""
    lines = []
    for name, rows in suites.items():
        if name in ("dropout", "norm", "overhead"):
            continue
        for peers in cases(rows):
            row = best(peers, same_dtype=False)
            if row is not None and speedup(row) < 1:
                ours = "" if row["ours"] == row["op"] else f" {row['ours']}"
                lines.append((row["op"] + ours, shape_of(row), cell(row, named=True)))
    return _markdown(("ours", "shape", "fastest dense layer"), lines) if lines else []


def _machine(folder: Path) -> list[str]:
    suites = {name: rows for name in TITLES if (rows := read(folder / f"{name}.csv"))}
    suites |= {path.stem: read(path) for path in sorted(folder.glob("*.csv")) if path.stem not in suites}
    every = [row for rows in suites.values() for row in rows]
    if not every:
        return []
    first = every[0]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in every))
    threads = " and ".join(dict.fromkeys(row["threads"] for row in every))
    lines = [
        f"{first['cpu']}, {first['isa']}, {threads} thread(s), torch {first['torch']}, {first['packages']}, "
        f"{first['date']} ({commits})",
        "",
    ]
    for name, rows in suites.items():
        title = TITLES.get(name, name)
        if name == "model":
            lines += _folded(title, model_table(rows))
        else:
            lines += _folded(": ".join(filter(None, (title, summary(rows)))), table(rows))
        if name in PICTURES and (folder / PICTURES[name][0]).exists():
            picture, text = PICTURES[name]
            lines += [f"![{text}](bench/results/{folder.name}/{picture})", ""]
    wins = dense_wins(suites)
    return lines + (_folded("Where a dense layer is faster", wins) if wins else [])


def render(results: Path = RESULTS) -> str:
    lines = [BEGIN, ""]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        lines += _machine(folder)
    return "\n".join([*lines, END])


def main() -> None:
    text = README.read_text()
    for begin, end, lines in (
        (BEGIN, END, render()),
        (QUALITY_BEGIN, QUALITY_END, "\n".join([QUALITY_BEGIN, "", *quality.markdown(), "", QUALITY_END])),
    ):
        before, rest = text.split(begin)
        text = before + lines + rest.split(end)[1]
    README.write_text(text)


if __name__ == "__main__":
    main()
