"""Does the saved file give the same model in a process that knows nothing but the file and the architecture?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bigmodel_ext.checkpoint import load_model
from bigmodel_ext.compress import measure
from bigmodel_ext.train.loop import Examples, outputs
from bigmodel_ext.train.tasks import get


def check(
    task: str, settings: Mapping[str, Any], model: nn.Module, file: Path, examples: Examples, batch: int, scratch: Path
) -> dict[str, Any]:
    """Load `file` in a fresh process, run it on `examples` and compare with `model`'s outputs.

    Returns:
        a report entry: score (the task's metric), bytes, parameters, latency_ms (timed there, alone) and `bit_equal`.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    sent, received = scratch / "reload-inputs.safetensors", scratch / "reload-outputs.safetensors"
    save_file({"inputs": examples.inputs, "targets": examples.targets}, sent)
    request = {
        "task": task, "settings": dict(settings), "model": str(file), "inputs": str(sent), "outputs": str(received),
        "batch": batch, "threads": torch.get_num_threads(),
    }  # fmt: skip
    command = [sys.executable, "-m", "bigmodel_ext.compress.reload", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the saved model could not be checked in a fresh process: {lines[-1]}")
    entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    theirs = load_file(received)["outputs"]
    sent.unlink()
    received.unlink()
    return {**entry, "bit_equal": torch.equal(theirs, outputs(model, examples.inputs))}


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
    torch.set_num_threads(request["threads"])
    task = get(request["task"])
    model = load_model(task.build(request["settings"]), request["model"]).eval()
    tensors = load_file(request["inputs"])
    examples = Examples(tensors["inputs"], tensors["targets"])
    batch = examples.inputs[: request["batch"]]
    save_file({"outputs": outputs(model, examples.inputs)}, request["outputs"])
    return {
        "score": task.metric(model, examples),
        "bytes": measure.state_bytes(model),
        "parameters": measure.parameters(model),
        "latency_ms": measure.latencies({"model": model}, batch)["model"]["latency_ms"],
        "batch": len(batch),
        "threads": 1,
    }


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
