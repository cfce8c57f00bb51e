"""What `compress` did, with every figure: for programs (report.json) and for people (a table, report.md, a plot)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_ext.compress import measure
from bigmodel_ext.compress.pipeline.context import Context, Stage
from bigmodel_ext.compress.report import size, table


@dataclass(frozen=True)
class Report:
    """`data`: JSON. Its keys: budget, cost, stages (name, setting, score, bytes, parameters, nonzero, latency_ms,
    speedup, attempts, details), met."""

    data: dict[str, Any]

    def __str__(self) -> str:
        rows = [HEADER, *_rows(self.data)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def markdown(self) -> str:
        """report.md."""
        lines = ["# Compressed", "", *_verdict(self.data), "", *table(HEADER, _rows(self.data)), ""]
        for stage in self.data["stages"][1:]:
            lines += _stage_text(stage, self.data)
        return "\n".join(lines)

    def write(self, folder: str | Path) -> None:
        """report.json, report.md and, where layers were chosen, pareto.png (needs matplotlib), in a folder that is
        created if need be."""
        from bigmodel_ext.compress import plots

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.data, indent=2, allow_nan=False) + "\n")
        (folder / "report.md").write_text(self.markdown())
        for stage in self.data["stages"]:
            if stage["details"].get("layers"):
                plots.pareto(stage["details"], self.data["budget"], folder / "pareto.png")


HEADER = ("step", "score", "size", "smaller", "latency", "faster", "setting")


def summary(context: Context, stages: Sequence[Stage]) -> Report:
    """Every stage measured side by side, in one process, on one thread."""
    batch = context.example
    names = [f"{i} {stage.name}" for i, stage in enumerate(stages)]
    timed = context.journal.recall(
        "latencies",
        lambda: measure.latencies({n: s.model for n, s in zip(names, stages, strict=True)}, batch),
    )
    entries = [
        {
            "name": stage.name,
            "setting": stage.setting,
            "score": stage.score,
            "bytes": measure.state_bytes(stage.model),
            "parameters": measure.parameters(stage.model),
            "nonzero": measure.nonzero_weights(stage.model),
            "latency_ms": timed[name]["latency_ms"],
            "speedup": timed[name]["speedup"],
            "batch": len(batch),
            "threads": 1,
            "rolled_back": stage.rolled_back,
            "attempts": [vars(attempt) for attempt in stage.attempts],
            "details": stage.details,
        }
        for name, stage in zip(names, stages, strict=True)
    ]
    last = entries[-1]
    reached = last["bytes"] if context.cost == "bytes" else 1e-3 * last["latency_ms"]
    budget = {
        "max_drop": context.budget.max_drop, "drop_type": context.budget.drop_type, "baseline": context.baseline,
        "floor": context.budget.floor(context.baseline),
    }  # fmt: skip
    cost = {"name": context.cost, "target": context.target, "reached": reached,
            "met": context.target is None or reached <= context.target}  # fmt: skip
    return Report({"budget": budget, "cost": cost, "stages": entries})


def _rows(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    base = data["stages"][0]
    return [
        (
            entry["name"],
            f"{entry['score']:.4f}",
            size(entry["bytes"]),
            f"{base['bytes'] / entry['bytes']:.1f}x",
            f"{entry['latency_ms']:.2f} ms",
            f"{entry['speedup']:.1f}x",
            entry["setting"],
        )
        for entry in data["stages"]
    ]


def _verdict(data: Mapping[str, Any]) -> list[str]:
    first, last, cost = data["stages"][0], data["stages"][-1], data["cost"]
    lines = [
        f"{first['bytes'] / last['bytes']:.1f}x smaller, {last['speedup']:.1f}x faster at batch {last['batch']} on one "
        f"thread; score {first['score']:.4f} -> {last['score']:.4f} (at least {data['budget']['floor']:.4f} allowed)."
    ]
    if cost["target"] is not None:
        met = "reached" if cost["met"] else "NOT reached within the budget"
        lines.append(f"Wanted: {cost['name']} {cost['target']:.4g}: {met} ({cost['reached']:.4g}).")
    return lines


def _stage_text(stage: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    lines = [f"## {stage['name']}", "", f"{stage['setting']}.", ""]
    if stage["attempts"]:
        body = [(a["setting"], f"{a['score']:.4f}", "kept" if a["kept"] else "rolled back") for a in stage["attempts"]]
        lines += [*table(("tried", "score", ""), body), ""]
    details = stage["details"]
    if details.get("layers"):
        unit, scale = ("ms", 1e3) if details["cost"] == "latency" else ("kB", 1e-3)
        header = ("layer", "form", unit, f"{unit} dense", "damage")
        lines += [*table(header, [_layer(fqn, own, scale) for fqn, own in details["layers"].items()]), ""]
        lines += ["![cost and score of what was tried](pareto.png)", ""]
    return lines


def _layer(fqn: str, own: Mapping[str, Any], scale: float) -> tuple[str, ...]:
    options = {option["form"]: option for option in own["options"]}
    chosen, dense = options[own["told"]], own["options"][0]
    return (
        f"`{fqn}`",
        own["told"],
        f"{scale * chosen['cost']:.4g}",
        f"{scale * dense['cost']:.4g}",
        f"{chosen['damage']:.2g}",
    )
