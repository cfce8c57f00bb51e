"""report.json for programs, report.md and a table for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bigmodel_ext.convert import Explanation

Show = Callable[[float], str]  # a score of the task's metric as people read it


def size(number: int) -> str:
    """1234567 -> "1.23 MB" (decimal units)."""
    if number < 1000:
        return f"{number} B"
    value, unit = (number / 1e3, "kB") if number < 1e6 else (number / 1e6, "MB")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def layers(details: Mapping[str, Any], explanation: Explanation) -> list[dict[str, Any]]:
    """What explain tells of each layer that could change, and the times that its form was chosen by."""
    by_name = {row.fqn: row for row in explanation.layers}
    result = []
    for fqn, own in details["layers"].items():
        row = by_name[fqn]
        options = {option["form"]: option["cost"] for option in own["options"]}
        gains = {form: options["fp32"] / max(seconds, 1e-12) for form, seconds in options.items()}
        result.append({
            "fqn": fqn, "form": own["told"], "kind": own["form"]["kind"], "sparsity": own["form"]["sparsity"],
            "measured_gains": gains, "reason": _reason(own["told"], gains), "kernel": row.kernel, "isa": row.isa,
            "bytes": row.bytes, "dense_bytes": row.dense_bytes, "gain": row.gain, "gain_rows": explanation.batch,
        })  # fmt: skip
    return result


def _reason(chosen: str, gains: Mapping[str, float]) -> str:
    told = ", ".join(f"{form} {gain:.2f}x" for form, gain in gains.items() if form != "fp32")
    return f"the controller's choice; measured: {told} of fp32" if told else "no other form fits"


def rows(report: Mapping[str, Any], show: Show) -> list[tuple[str, ...]]:
    """One line of `header`'s cells for each model."""
    base = report["baseline"]
    return [
        (
            entry["name"],
            show(entry["score"]),
            size(entry["bytes"]),
            f"{base['bytes'] / entry['bytes']:.1f}x",
            f"{entry['latency_ms']:.2f} ms",
            f"{entry['speedup']:.1f}x",
        )
        for entry in (base, *report["stages"])
    ]


def header(report: Mapping[str, Any]) -> tuple[str, ...]:
    return ("model", report["metric"], "size", "smaller", "latency", "faster")


def verdict(report: Mapping[str, Any], show: Show) -> list[str]:
    """What it comes to, in plain lines."""
    done, reloaded = report["compressed"], report["reloaded"]
    budget = "within" if done["within_max_drop"] else "NOT within"
    allowed = f"{report['max_drop']:g}" if report["drop_type"] == "absolute" else f"{report['max_drop']:.3g} of it"
    same = "bit for bit the saved model's" if reloaded["bit_equal"] else "NOT the saved model's"
    lines = [
        f"{done['times_smaller']:.1f}x smaller, {done['times_faster']:.1f}x faster; held-out {report['metric']} "
        f"{show(report['baseline']['score'])} -> {show(done['score'])} ({budget} the {allowed} allowed)",
        f"reloaded in a fresh process: outputs are {same} ({report['data']['test']} held-out examples)",
    ]
    if report["quick"]:
        lines.append("a quick run: training was cut short, so scores mean nothing")
    return lines


def table(header: Collection[str], body: Collection[Collection[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]


def _stage_text(entry: Mapping[str, Any], max_drop: float, show: Show) -> list[str]:
    lines = [f"- **{entry['name']}**: {entry['setting']}."]
    for attempt in entry["attempts"]:
        if not attempt["kept"]:
            lines.append(
                f"  - rolled back: {attempt['setting']} gave {show(attempt['score'])} on validation, "
                f"more than {max_drop:g} below the teacher"
            )
    return lines


def _layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    gain = "-" if layer["gain"] is None else f"{layer['gain']:.2f}x"
    return (f"`{layer['fqn']}`", layer["form"], layer["kernel"] or "torch", size(layer["bytes"]), gain, layer["reason"])


def markdown(report: Mapping[str, Any], show: Show) -> str:
    """report.md."""
    hardware, base, done, data = (report[key] for key in ("hardware", "baseline", "compressed", "data"))
    layer_header = ("layer", "form", "kernel", "size", "gain", "why")
    lines = [
        f"# {report['task']}, seed {report['seed']}, at most {report['max_drop']:g} ({report['drop_type']}) of "
        f"{report['metric']} to lose",
        "",
        *(f"{line}.  " for line in verdict(report, show)),
        "",
        *table(header(report), rows(report, show)),
        "",
        f"The {report['metric']} is that on {data['test']} held-out examples that no choice was made on "
        f"({data['train']} trained, {data['validation']} for choosing). Size: all tensors of the state "
        "dict, as saved. Latency: median at batch "
        f"{base['batch']} on one thread, all models taking turns in one process; faster: median of the turns' ratios.",
        "",
        f"{hardware['cpu']}, {hardware['isa'] or 'no kernel of ours'}, {hardware['system']}, "
        f"torch {hardware['torch']}, {hardware['training_threads']} training thread(s), "
        f"{report['seconds']:.0f} s in all.",
        "",
        "![score against size and latency](stages.png)",
        "",
        "## Stages",
        "",
        f"- **teacher**: {base['setting']}; {base['parameters']:,} parameters.",
        *(line for entry in report["stages"] for line in _stage_text(entry, report["max_drop"], show)),
        "",
        "## Layers",
        "",
        *table(layer_header, [_layer_cells(layer) for layer in report["layers"]]),
        "",
        f"Gain: over the dense float32 layer at {report['layers'][0]['gain_rows']} rows, one thread (`explain`). The "
        'form was chosen by times on each layer\'s own inputs, which stand under "why".',
        "",
        "![gain per layer](layers.png)",
        "",
        "## Loading it",
        "",
        "```python",
        "from bigmodel_ext import load_model",
        "from bigmodel_ext.train import tasks",
        "",
        f"model = tasks.get({report['task']!r}).build({done['settings']!r})",
        'load_model(model, "model.safetensors").eval()',
        "```",
        "",
    ]
    return "\n".join(lines)


def write(report: Mapping[str, Any], show: Show, folder: Path) -> None:
    """report.json and report.md."""
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (folder / "report.md").write_text(markdown(report, show))
