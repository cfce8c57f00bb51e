"""The report's plots: how each stage moved, and what each layer gained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_ext.compress.report import Show, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#4c5a69", "#2a7fb8", "#d9622b", "#8a63b0", "#4d7a4d")  # of the stages, in their order
KIND_COLORS = {
    "dense": "#9aa5b1", "int8": "#2a7fb8", "int8_sparse": "#d9622b", "sparse": "#8a63b0", "semi_sparse": "#4d7a4d",
    "binary_coded": "#c9a227",
}  # fmt: skip
KIND_NAMES = {
    "dense": "fp32", "int8_sparse": "1x4-sparse int8", "sparse": "sparse fp32", "semi_sparse": "2:4",
    "binary_coded": "binary-coded",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa5b1",
    "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold", "xtick.color": "#4c5a69",
    "ytick.color": "#4c5a69", "axes.labelcolor": "#4c5a69",
}  # fmt: skip


def write(report: Mapping[str, Any], show: Show, folder: Path) -> None:
    """stages.png, layers.png and pareto.png."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        _stages(report, show, folder / "stages.png")
        _layers(report, folder / "layers.png")
    budget = {"baseline": report["baseline"]["validation_score"], "floor": report["validation_floor"]}
    pareto(report["stages"][-1]["details"], budget, folder / "pareto.png", report["metric"], show)


def _stages(report: Mapping[str, Any], show: Show, path: Path) -> None:
    from matplotlib.figure import Figure

    entries = [report["baseline"], *report["stages"]]
    floor = report["floor"]
    figure = Figure(figsize=(10.5, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _path(left, entries, "bytes", floor, show)
    _path(right, entries, "latency_ms", floor, show)
    left.set(xlabel="size of all tensors (log scale)", ylabel=f"held-out {report['metric']}", title="Size")
    batch = entries[0]["batch"]
    right.set(xlabel=f"latency at batch {batch}, one thread (log scale)", title="Latency")
    figure.savefig(path)


def _path(axes: Axes, entries: list[Mapping[str, Any]], key: str, floor: float, show: Show) -> None:
    """One marker a stage, arrows from each to the next, and the budget as a band."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    xs, ys = [entry[key] for entry in entries], [entry["score"] for entry in entries]
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 2.6, max(xs) * 2.6)
    low, high = min(*ys, floor), max(ys)
    margin = max(0.25 * (high - low), 0.0015)
    top = high + 1.6 * margin
    axes.set_ylim(low - margin, top)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: show(y)))
    axes.axhspan(floor, top, color="#eef4ee", zorder=0)
    axes.axhline(floor, color="#6a9a6a", lw=1, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        "budget", (0.015, floor),
        xycoords=("axes fraction", "data"), xytext=(0, -11), textcoords="offset points", fontsize=8, color="#4d7a4d",
    )  # fmt: skip
    for i in range(len(xs) - 1):
        arrow = {"arrowstyle": "-|>", "color": "#b4bcc6", "lw": 1.4, "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", (xs[i + 1], ys[i + 1]), (xs[i], ys[i]), arrowprops=arrow, zorder=2)
    for color, x, y in zip(COLORS, xs, ys, strict=False):
        axes.scatter([x], [y], s=75, color=color, zorder=3, edgecolor="white", linewidth=1.2)
    _labels(axes, entries, xs, ys, key)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(round(x)) if key == "bytes" else f"{x:g} ms"))


def _labels(axes: Axes, entries: list[Mapping[str, Any]], xs: list[float], ys: list[float], key: str) -> None:
    """Names and values: outwards for the ends of the path, below the others."""
    for i, (entry, x, y) in enumerate(zip(entries, xs, ys, strict=True)):
        value = size(round(x)) if key == "bytes" else f"{x:.1f} ms"
        right, up, ha, va = (9, 0, "left", "center") if i == 0 else (0, -9, "center", "top")
        if i == len(entries) - 1:
            right, up, ha, va = -9, 0, "right", "center"
        axes.annotate(
            f"{entry['name']}\n{value}", (x, y), xytext=(right, up), textcoords="offset points", ha=ha, va=va,
            fontsize=8.5, color=COLORS[i], linespacing=1.1, zorder=4,
        )  # fmt: skip


def _layers(report: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    layers = report["layers"]
    gains = [layer["gain"] or 1.0 for layer in layers]
    figure = Figure(figsize=(8.5, 1.5 + 0.34 * len(layers)), dpi=150, layout="constrained")
    axes = figure.subplots()
    colors = [KIND_COLORS[layer["kind"]] for layer in layers]
    axes.barh(range(len(layers)), gains, color=colors, height=0.68)
    for i, (layer, gain) in enumerate(zip(layers, gains, strict=True)):
        smaller = layer["dense_bytes"] / layer["bytes"]
        change = f"{smaller:.1f}x smaller" if smaller >= 1 else f"{1 / smaller:.1f}x larger"
        text = f"{gain:.1f}x faster, {change}" if layer["gain"] else "left in fp32"
        axes.annotate(text, (gain, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.axvline(1, color="#4c5a69", lw=1, ls=(0, (4, 3)))
    axes.set_yticks(range(len(layers)), [layer["fqn"] for layer in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, max(gains) * 1.35)
    axes.set_xlabel(f"times as fast as the dense fp32 layer, {layers[0]['gain_rows']} rows, one thread")
    axes.set_title("Gain per layer")
    kinds = [kind for kind in KIND_COLORS if any(layer["kind"] == kind for layer in layers)]
    handles = [Patch(color=KIND_COLORS[kind], label=KIND_NAMES.get(kind, kind)) for kind in kinds]
    axes.legend(
        handles=handles, frameon=False, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5
    )
    figure.savefig(path)


def pareto(
    details: Mapping[str, Any], budget: Mapping[str, float], path: Path, metric: str = "score", show: Show | None = None
) -> None:
    """What the controller tried: score against cost, the budget as a band, the kept ones joined."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with matplotlib.rc_context(STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        scale, unit = (1e3, "latency of the layers' forms, ms") if details["cost"] == "latency" else (1e-3, "size, kB")
        trials = details["trials"]
        for within, color, label in ((True, "#2a7fb8", "keeps the budget"), (False, "#d9622b", "rolled back")):
            own = [t for t in trials if t["within"] == within]
            axes.scatter(
                [scale * t["cost"] for t in own], [t["score"] for t in own],
                s=48, color=color, label=label, zorder=3, edgecolor="white", linewidth=1,
            )  # fmt: skip
        best = min((t for t in trials if t["kept"]), key=lambda t: t["cost"], default=None)
        if best is not None:
            axes.annotate(
                "taken", (scale * best["cost"], best["score"]), xytext=(0, 10), textcoords="offset points",
                ha="center", fontsize=8.5, color="#2a7fb8",
            )  # fmt: skip
        axes.axhline(budget["floor"], color="#6a9a6a", lw=1, ls=(0, (4, 3)), zorder=1)
        axes.axhline(budget["baseline"], color="#4c5a69", lw=1, zorder=1)
        axes.annotate(
            "the original's score", (0.99, budget["baseline"]), xycoords=("axes fraction", "data"), xytext=(0, 4),
            textcoords="offset points", ha="right", fontsize=8, color="#4c5a69",
        )  # fmt: skip
        axes.annotate(
            "budget", (0.99, budget["floor"]), xycoords=("axes fraction", "data"), xytext=(0, -11),
            textcoords="offset points", ha="right", fontsize=8, color="#4d7a4d",
        )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(y=0.12)
        axes.set(xlabel=unit, ylabel=f"validation {metric}", title="What the controller tried")
        if show is not None:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: show(y)))
        axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        figure.savefig(path)
