"""The report's plots: how each stage moved, and what each layer gained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_ext.compress.report import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"teacher": "#4c5a69", "student": "#2a7fb8", "pruned": "#8a63b0", "int8": "#d9622b"}
KIND_COLORS = {"fp32": "#9aa5b1", "int8": "#2a7fb8", "int8 1x4-sparse": "#d9622b"}
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa5b1",
    "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold", "xtick.color": "#4c5a69",
    "ytick.color": "#4c5a69", "axes.labelcolor": "#4c5a69",
}  # fmt: skip


def write(report: Mapping[str, Any], folder: Path) -> None:
    """stages.png and layers.png."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        _stages(report, folder / "stages.png")
        _layers(report, folder / "layers.png")


def _stages(report: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    entries = [report["baseline"], *report["stages"]]
    figure = Figure(figsize=(10.5, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _path(left, entries, "bytes", report["max_drop"])
    _path(right, entries, "latency_ms", report["max_drop"])
    left.set(xlabel="size of all tensors (log scale)", ylabel="held-out accuracy (%)", title="Size")
    batch = entries[0]["batch"]
    right.set(xlabel=f"latency at batch {batch}, one thread (log scale)", title="Latency")
    figure.savefig(path)


def _path(axes: Axes, entries: list[Mapping[str, Any]], key: str, max_drop: float) -> None:
    """One marker a stage, arrows from each to the next, and the accuracy budget as a band."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    xs, ys = [entry[key] for entry in entries], [100 * entry["accuracy"] for entry in entries]
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 2.6, max(xs) * 2.6)
    low, high = min(*ys, ys[0] - 100 * max_drop), max(ys)
    margin = max(0.25 * (high - low), 0.15)
    axes.set_ylim(low - margin, high + 1.6 * margin)
    axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(low, high) if low - margin <= tick <= 100])
    axes.axhspan(ys[0] - 100 * max_drop, high + 1.6 * margin, color="#eef4ee", zorder=0)
    axes.axhline(ys[0] - 100 * max_drop, color="#6a9a6a", lw=1, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"budget: {100 * max_drop:g} point{'s' * (max_drop != 0.01)} below the teacher",
        (0.015, ys[0] - 100 * max_drop),
        xycoords=("axes fraction", "data"), xytext=(0, -11), textcoords="offset points", fontsize=8, color="#4d7a4d",
    )  # fmt: skip
    for i in range(len(xs) - 1):
        arrow = {"arrowstyle": "-|>", "color": "#b4bcc6", "lw": 1.4, "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", (xs[i + 1], ys[i + 1]), (xs[i], ys[i]), arrowprops=arrow, zorder=2)
    for entry, x, y in zip(entries, xs, ys, strict=True):
        axes.scatter([x], [y], s=75, color=COLORS[entry["name"]], zorder=3, edgecolor="white", linewidth=1.2)
    _labels(axes, entries, xs, ys, key)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(round(x)) if key == "bytes" else f"{x:g} ms"))


def _labels(axes: Axes, entries: list[Mapping[str, Any]], xs: list[float], ys: list[float], key: str) -> None:
    """Names and values: outwards for the ends of the path. Student and pruned have one size and nearly one accuracy, so
    the lower of these two has its label below and the other above."""
    places = {"teacher": (9, 0, "left", "center"), "int8": (-9, 0, "right", "center")}
    lower = "student" if ys[1] <= ys[2] else "pruned"
    for entry, x, y in zip(entries, xs, ys, strict=True):
        value = size(round(x)) if key == "bytes" else f"{x:.1f} ms"
        between = (0, -9, "center", "top") if entry["name"] == lower else (0, 9, "center", "bottom")
        right, up, ha, va = places.get(entry["name"], between)
        axes.annotate(
            f"{entry['name']}\n{value}", (x, y), xytext=(right, up), textcoords="offset points", ha=ha, va=va,
            fontsize=8.5, color=COLORS[entry["name"]], linespacing=1.1, zorder=4,
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
    handles = [Patch(color=KIND_COLORS[kind], label=kind) for kind in kinds]
    axes.legend(
        handles=handles, frameon=False, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5
    )
    figure.savefig(path)


def pareto(details: Mapping[str, Any], budget: Mapping[str, float], path: Path) -> None:
    """What the controller tried: score against cost, the budget as a band, the kept ones joined."""
    import matplotlib
    from matplotlib.ticker import MaxNLocator

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
        axes.set(xlabel=unit, ylabel="score", title="What was tried")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        figure.savefig(path)
