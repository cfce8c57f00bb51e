"""Training that goes on where it was killed and ends with the same weights, bit for bit.

One safetensors file holds the model's state, the optimizer's, that of each random generator and of what else keeps any,
and as JSON in its metadata where the run is. It is replaced as a whole, so there is always one that loads; nothing in
it is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from bigmodel_ext._files import replacing

FORMAT = "bigmodel_ext training 1"


@runtime_checkable
class Stateful(Protocol):
    """Something with a state that a resumed run needs back, as the masks of a pruner."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Resume:
    """Keep a run's state in `path` (its folder must exist), anew every so many steps and after each epoch; go on from
    there if the file is there. A finished run's file gives the finished model at once: delete it to train again.

    Raises:
        ValueError: every is below 1.
    """

    path: Path
    every: int = 200

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")


def _flat(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, named ``<number of the parameter>.<what it is>``."""
    return {
        f"{i}.{name}": value
        for i, p in enumerate(_flat(optimizer))
        for name, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """What :func:`optimizer_state` gave, into an optimizer of the same parameters."""
    nested: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split(".", 1)
        nested.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})


def generators(device: torch.device) -> dict[str, Tensor]:
    """torch's own generators: the processor's, and the GPU's that the model is on."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write(path: Path, parts: Mapping[str, Mapping[str, Tensor]], position: Mapping[str, Any]) -> None:
    """Put tensors, by part and name, and a position (anything JSON has) into a file."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    text = json.dumps(position, sort_keys=True)
    metadata = {"format": FORMAT, "position": text, "checksum": _digest(tensors, text)}
    with replacing(path) as file:
        file.write(save(tensors, metadata))


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What :func:`write` was given.

    Raises:
        ValueError: the file is damaged or something else; the message names it.
        OSError: it can't be read.
    """
    with open(path, "rb"):  # OSErrors as such, before they are taken for damage
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"'{path}' can't be resumed from: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"'{path}' can't be resumed from: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    text = metadata.get("position", "")
    if metadata.get("checksum") != _digest(tensors, text):
        raise ValueError(f"'{path}' can't be resumed from: it is damaged (wrong checksum)")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, own = name.split("/", 1)
        parts.setdefault(part, {})[own] = tensor
    return parts, json.loads(text)


def require_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError, with names and values, if the file is of another run."""
    other = [f"{key} is {saved.get(key)!r} there and {now[key]!r} here" for key in now if saved.get(key) != now[key]]
    if other:
        raise ValueError(f"'{path}' can't be resumed from: it is of another run: {'; '.join(other)}")


def shapes(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """What each tensor is, as text."""
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors}
