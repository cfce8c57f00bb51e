"""report.json for programs, report.md and a table for people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bigmodel_ext.compress.select import LayerChoice
from bigmodel_ext.convert import Explanation

HEADER = ("model", "accuracy", "size", "smaller", "latency", "faster")


def size(number: int) -> str:
    """1234567 -> "1.23 MB" (decimal units)."""
    if number < 1000:
        return f"{number} B"
    value, unit = (number / 1e3, "kB") if number < 1e6 else (number / 1e6, "MB")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def layers(choices: Collection[LayerChoice], explanation: Explanation) -> list[dict[str, Any]]:
    """What explain tells of each linear layer, and why its form was chosen."""
    by_name = {row.fqn: row for row in explanation.layers}
    result = []
    for choice in choices:
        row = by_name[choice.fqn]
        result.append({
            "fqn": choice.fqn, "kind": choice.kind, "reason": choice.reason, "rows": choice.rows,
            "zero_blocks": choice.zero_blocks, "int8_error": choice.error, "measured_gains": choice.gains,
            "kernel": row.kernel, "isa": row.isa, "bytes": row.bytes, "dense_bytes": row.dense_bytes, "gain": row.gain,
            "gain_rows": explanation.batch,
        })  # fmt: skip
    return result


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line of HEADER's cells for each model."""
    base = report["baseline"]
    return [
        (
            entry["name"],
            f"{entry['accuracy']:.2%}",
            size(entry["bytes"]),
            f"{base['bytes'] / entry['bytes']:.1f}x",
            f"{entry['latency_ms']:.2f} ms",
            f"{entry['speedup']:.1f}x",
        )
        for entry in (base, *report["stages"])
    ]


def verdict(report: Mapping[str, Any]) -> list[str]:
    """What it comes to, in plain lines."""
    done, reloaded = report["compressed"], report["reloaded"]
    change = 100 * (0.0 - done["accuracy_drop"])  # not -drop, which would print -0.00
    budget = "within" if done["within_max_drop"] else "NOT within"
    same = "bit for bit the saved model's" if reloaded["bit_equal"] else "NOT the saved model's"
    lines = [
        f"{done['times_smaller']:.1f}x smaller, {done['times_faster']:.1f}x faster; held-out accuracy {change:+.2f} "
        f"points ({budget} the {100 * report['max_drop']:g} allowed)",
        f"reloaded in a fresh process: outputs are {same} ({report['data']['test']} held-out examples)",
    ]
    if report["quick"]:
        lines.append("a quick run: training was cut short, so accuracies mean nothing")
    return lines


def table(header: Collection[str], body: Collection[Collection[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]


def _stage_text(entry: Mapping[str, Any], max_drop: float) -> list[str]:
    lines = [f"- **{entry['name']}**: {entry['setting']}."]
    for attempt in entry["attempts"]:
        if not attempt["kept"]:
            lines.append(
                f"  - rolled back: {attempt['setting']} gave {attempt['validation_accuracy']:.2%} on validation, "
                f"more than {max_drop:g} below the teacher"
            )
    return lines


def _layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    gain = "-" if layer["gain"] is None else f"{layer['gain']:.2f}x"
    return (f"`{layer['fqn']}`", layer["kind"], layer["kernel"] or "torch", size(layer["bytes"]), gain, layer["reason"])


def markdown(report: Mapping[str, Any]) -> str:
    """report.md."""
    hardware, base, done, data = (report[key] for key in ("hardware", "baseline", "compressed", "data"))
    layer_header = ("layer", "form", "kernel", "size", "gain", "why")
    lines = [
        f"# {report['task']}, seed {report['seed']}, at most {report['max_drop']:g} of accuracy to lose",
        "",
        *(f"{line}.  " for line in verdict(report)),
        "",
        *table(HEADER, rows(report)),
        "",
        f"Accuracy on {data['test']} held-out examples that no choice was made on ({data['train']} trained, "
        f"{data['validation']} for choosing). Size: all tensors of the state dict, as saved. Latency: median at batch "
        f"{base['batch']} on one thread, all models taking turns in one process; faster: median of the turns' ratios.",
        "",
        f"{hardware['cpu']}, {hardware['isa'] or 'no kernel of ours'}, {hardware['system']}, "
        f"torch {hardware['torch']}, {hardware['training_threads']} training thread(s), "
        f"{report['seconds']:.0f} s in all.",
        "",
        "![accuracy against size and latency](stages.png)",
        "",
        "## Stages",
        "",
        f"- **teacher**: {base['setting']}; {base['parameters']:,} parameters.",
        *(line for entry in report["stages"] for line in _stage_text(entry, report["max_drop"])),
        "",
        "## Layers",
        "",
        *table(layer_header, [_layer_cells(layer) for layer in report["layers"]]),
        "",
        f"Gain: over the dense float32 layer at {report['layers'][0]['gain_rows']} rows, one thread (`explain`). The "
        'form was chosen on each layer\'s own inputs, where its figures are those under "why".',
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


def write(report: Mapping[str, Any], folder: Path) -> None:
    """report.json and report.md."""
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (folder / "report.md").write_text(markdown(report))
