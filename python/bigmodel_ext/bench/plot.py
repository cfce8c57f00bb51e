"""Pictures of a machine's rows: roofline, speed-up against sparsity with the crossover, dropout's bandwidth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_ext.bench import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, str]]

OURS, PEER, INK, PALE = "#d9622b", "#2a7fb8", "#4c5a69", "#9aa5b1"
SERIES = (OURS, PEER, "#8a63b0", "#6a9a6a")
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": PALE,
    "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold", "xtick.color": INK,
    "ytick.color": INK, "axes.labelcolor": INK, "legend.frameon": False, "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
}  # fmt: skip
CSR = "torch CSR"
NO_DENSE = (CSR, "memcpy")  # peers that are not dense layers


def draw(out: Path) -> list[Path]:
    """PNGs into each machine's folder in `out`; the files that could be drawn from its rows."""
    import matplotlib

    drawn = []
    with matplotlib.rc_context(STYLE):
        for folder in sorted({path.parent for path in out.glob("*/*.csv")}):
            for name, picture in PICTURES.items():
                path = folder / f"{name}.png"
                if picture(folder, path):
                    drawn.append(path)
    return drawn


def _rows(folder: Path, suite: str) -> Rows:
    """Of the instruction set and thread count that has most of them."""
    rows = results.read(folder / f"{suite}.csv")
    group = Counter((row["isa"], row["threads"]) for row in rows).most_common(1)
    return [row for row in rows if (row["isa"], row["threads"]) == group[0][0]] if group else []


def _figure(width: float, height: float, panels: int, title: str) -> tuple[Any, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=INK)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _legend_below(axes: Axes, title: str) -> None:
    """Where it can't cover a point."""
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16), title=title, alignment="left", borderpad=0)


def _where(row: dict[str, str]) -> str:
    return f"{row['cpu']}, {row['isa']}, {row['threads']} thread(s), {row['date']} ({row['commit']})"


def _cases(rows: Rows) -> Rows:
    """One row for each case and ours, whatever the peer."""
    return list({(row["op"], row["shape"], row["cache"], row["ours"]): row for row in rows}.values())


# --- roofline ---------------------------------------------------------------------------------------------------------


def _roof(axes: Axes, rows: Rows) -> None:
    from matplotlib.ticker import FuncFormatter

    peak, memory = (max(float(row[name]) for row in rows) for name in ("peak_gops", "memory_gbps"))
    xs = [float(row["real_gops"]) / float(row["gbps"]) for row in rows]
    low, high = min([*xs, peak / memory / 8]) / 2, max([*xs, peak / memory]) * 2
    axes.plot(
        [low, peak / memory, high], [low * memory, peak, peak], color=INK, lw=1.2,
        label=f"measured: {peak:.0f} GOPS, {memory:.0f} GB/s from memory",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set(xlabel="operations with stored weights per byte", ylabel="GOPS")
    lowest = min([low * memory, *(float(row["real_gops"]) for row in rows)])
    axes.set_xlim(low, high)
    axes.set_ylim(lowest / 2, peak * 1.8)


def _points(axes: Axes, rows: Rows, label: str, color: str, marker: str) -> None:
    xs = [float(row["real_gops"]) / float(row["gbps"]) for row in rows]
    ys = [float(row["real_gops"]) for row in rows]
    axes.plot(xs, ys, ls="", marker=marker, ms=6, color=color, mec="white", mew=0.6, label=label)


def _points_of_roofline(folder: Path) -> Rows:
    """Packing, for one, does no operations."""
    every = _cases(_rows(folder, "int8") + _rows(folder, "sparse"))
    return [row for row in every if float(row["peak_gops"] or 0) and float(row["real_gops"] or 0)]


def roofline(folder: Path, path: Path) -> bool:
    rows = _points_of_roofline(folder)
    panels = {"int8": "int8", "fp32": "float32"}
    by_dtype = {dtype: [row for row in rows if row["dtype"] == dtype and float(row["gbps"])] for dtype in panels}
    shown = [dtype for dtype in panels if by_dtype[dtype]]
    if not shown:
        return False
    figure, axes = _figure(5.2 * len(shown), 5.0, len(shown), _where(rows[0]))
    for one, dtype in zip(axes, shown, strict=True):
        _roof(one, by_dtype[dtype])
        ops = dict.fromkeys((row["op"], row["cache"]) for row in by_dtype[dtype])
        for (op, cache), color, marker in zip(ops, SERIES, "os^D", strict=False):
            chosen = [row for row in by_dtype[dtype] if (row["op"], row["cache"]) == (op, cache)]
            _points(one, chosen, f"{op}, {cache} weights", color, marker)
        one.set_title(panels[dtype])
        _legend_below(one, "points above the slope: weights in a cache")
    figure.savefig(path)
    return True


# --- speed-up against sparsity ----------------------------------------------------------------------------------------


def _curves(rows: Rows, dtype: str) -> dict[str, list[tuple[float, float]]]:
    """(sparsity, speed-up) against F.linear, and against the best dense layer of the same dtype and of bfloat16."""
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        sparsity, speedup = float(row["sparsity"]), float(row["speedup"])
        if row["peer"] == "torch fp32":
            curves.setdefault("torch float32", {}).setdefault(sparsity, []).append(speedup)
        if row["peer_dtype"] == dtype and row["peer"] not in NO_DENSE:
            curves.setdefault(f"best dense {dtype}", {}).setdefault(sparsity, []).append(speedup)
        if row["peer_dtype"] == "bf16" and dtype == "fp32":
            curves.setdefault("torch bfloat16", {}).setdefault(sparsity, []).append(speedup)
        if row["peer"] == CSR:
            curves.setdefault(CSR, {}).setdefault(sparsity, []).append(speedup)
    return {name: sorted((x, min(ys)) for x, ys in curve.items()) for name, curve in curves.items()}


def crossover(curve: list[tuple[float, float]]) -> float | None:
    """The sparsity from which on the speed-up is at least 1, between measured points by a straight line."""
    below = [i for i, (_, speedup) in enumerate(curve) if speedup < 1]
    if not below:
        return curve[0][0] if curve else None
    last = below[-1]
    if last + 1 == len(curve):
        return None
    (x0, y0), (x1, y1) = curve[last], curve[last + 1]
    return x0 + (1 - y0) / (y1 - y0) * (x1 - x0)


def _sparsity_panel(axes: Axes, rows: Rows, dtype: str, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    curves = _curves(rows, dtype)
    for name, color in zip((f"best dense {dtype}", "torch float32", "torch bfloat16", CSR), SERIES, strict=True):
        curve = curves.get(name, [])
        if not curve:
            continue
        at = crossover(curve)
        wins = "" if at is None else f", wins from {100 * at:.0f} %" if at > curve[0][0] else ", always wins"
        xs, ys = zip(*((100 * x, y) for x, y in curve), strict=True)
        axes.plot(xs, ys, color=color, marker="o", ms=4, lw=1.6, label=f"{name}{wins}")
    axes.axhline(1, color=INK, lw=1)
    axes.set_yscale("log")
    axes.set_yticks([t for t in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="weights that are zero (%)", ylabel="times as fast (log scale)", title=title)
    _legend_below(axes, "against")


def sparsity(folder: Path, path: Path) -> bool:
    rows = [row for row in _rows(folder, "sparse") if row["sparsity"] and row["cache"] == "warm"]
    panels = []
    for op, dtype, name in (("sparse_linear", "fp32", "float32"), ("int8_sparse_linear", "int8", "int8 in 1x4 blocks")):
        chosen = [row for row in rows if row["op"] == op]
        levels: dict[tuple[str, str, str], set[str]] = {}
        for row in chosen:
            levels.setdefault((row["m"], row["n"], row["k"]), set()).add(row["sparsity"])
        if not levels:
            continue
        shape = max(levels, key=lambda s: (len(levels[s]), int(s[0]) * int(s[1]) * int(s[2])))
        chosen = [row for row in chosen if (row["m"], row["n"], row["k"]) == shape]
        panels.append((chosen, dtype, f"{name}, M={shape[0]} N={shape[1]} K={shape[2]}"))
    if not panels:
        return False
    figure, axes = _figure(5.2 * len(panels), 4.8, len(panels), _where(rows[0]))
    for one, (chosen, dtype, title) in zip(axes, panels, strict=True):
        _sparsity_panel(one, chosen, dtype, title)
    figure.savefig(path)
    return True


# --- dropout ----------------------------------------------------------------------------------------------------------


def _bandwidths(rows: Rows) -> dict[str, dict[str, float]]:
    """GB/s by shape and by who."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        shape = found.setdefault(row["shape"].removesuffix(" fwd"), {"ours": float(row["gbps"])})
        shape[row["peer"]] = float(row["bytes"]) / float(row["peer_us"]) / 1e3
    return found


def dropout(folder: Path, path: Path) -> bool:
    rows = [row for row in _rows(folder, "dropout") if row["shape"].endswith(" fwd")]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    if not ops:
        return False
    from matplotlib.ticker import FuncFormatter

    longest = max(len(_bandwidths([row for row in rows if row["op"] == op])) for op in ops)
    figure, axes = _figure(5.2 * len(ops), 1.4 + 0.62 * longest, len(ops), _where(rows[0]))
    names = {"ours": OURS, "memcpy": INK, "torch eager": PEER, "inductor": "#8a63b0"}
    for one, op in zip(axes, ops, strict=True):
        shapes = _bandwidths([row for row in rows if row["op"] == op])
        for i, (name, color) in enumerate(names.items()):
            values = [figures.get(name, 0.0) for figures in shapes.values()]
            if not any(values):
                continue
            places = [j + (i - 1.5) * 0.2 for j in range(len(shapes))]
            there = [(value, place) for value, place in zip(values, places, strict=True) if value]
            one.plot(*zip(*there, strict=True), ls="", marker="o", ms=6, color=color, label=name)
            for value, place in there:
                at: dict[str, Any] = {
                    "xytext": (6, 0),
                    "textcoords": "offset points",
                    "va": "center",
                    "fontsize": 7.5,
                    "color": INK,
                }
                one.annotate(f"{value:.3g}", (value, place), **at)
        one.set_yticks(range(len(shapes)), list(shapes))
        one.set_xscale("log")
        one.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        for j in range(len(shapes)):
            one.axhspan(j - 0.44, j + 0.44, color="#f1f3f5", lw=0, zorder=0)
        one.set_ylim(len(shapes) - 0.4, -0.6)
        one.set_xlim(right=one.get_xlim()[1] * 1.6)
        one.set(xlabel="GB/s read and written (log scale)", title=f"{op}, forward")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path)
    return True


PICTURES: dict[str, Callable[[Path, Path], bool]] = {"roofline": roofline, "sparsity": sparsity, "dropout": dropout}
