"""How kernels are launched: the configuration is chosen once per device and class of shapes, by measurement."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs

VERSION = 1  # of the kernels: figures of others are not read

Recorder = Callable[[Any, dict[str, Any], Sequence["Config"]], None]


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: the values of its constants, and how many warps and stages."""

    constants: dict[str, Any] = field(hash=False)
    num_warps: int = 4
    num_stages: int = 3
    only: str | None = None  # architecture, if it is for one

    def options(self, architecture: str) -> dict[str, Any]:
        """What the compiler is told. fp fusion would round x * y + z once, where the CPU's kernels and the reference
        round twice; AMD's devices have a third of the shared memory."""
        stages = min(self.num_stages, 2) if architecture.startswith("gfx") else self.num_stages
        return {"num_warps": self.num_warps, "num_stages": stages, "enable_fp_fusion": False}

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{constants} warps={self.num_warps} stages={self.num_stages}"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(knobs.runtime.interpret)


_recorder: Recorder | None = None
_chosen: dict[tuple[Any, ...], Config] = {}
_interpreter = threading.Lock()  # it has one program at a time


def record(recorder: Recorder | None) -> None:
    """Hand every launch to `recorder` instead of running it, or, with None, run them again: for tests that compile."""
    global _recorder
    _recorder = recorder


def launch(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    args: dict[str, Any],
    configs: Sequence[Config],
    shape_class: tuple[Any, ...],
) -> None:
    """kernel[grid(constants)](**args, **constants), with the fastest of the configs for this class of shapes. Kernels
    write their outputs and read nothing that they write, so that they may run any number of times."""
    if _recorder is not None:
        _recorder(kernel, args, configs)
        return
    device = next(a for a in args.values() if isinstance(a, torch.Tensor)).device
    key = (kernel.fn.__name__, device, shape_class)
    config = configs[0] if len(configs) == 1 else _chosen.get(key)
    if config is None:
        fit = [c for c in configs if c.only in (None, architecture(device))]
        if capturing(device):  # measuring would be captured too
            config = fit[0]
        else:
            config = _chosen[key] = _choose(kernel, grid, args, fit, key)
    _run(kernel, grid, args, config, device)


def _run(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    args: dict[str, Any],
    config: Config,
    device: torch.device,
) -> None:
    everything = {**args, **config.constants, **config.options(architecture(device))}
    if device.type == "cpu":
        with _interpreter:
            kernel[grid(config.constants)](**everything)
    else:
        with torch.cuda.device(device):
            kernel[grid(config.constants)](**everything)


def _choose(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    args: dict[str, Any],
    configs: Sequence[Config],
    key: tuple[Any, ...],
) -> Config:
    name, device, shape_class = key
    entry = f"{name} {shape_class}"
    path = _file(_device_name(device))
    known = {str(config): config for config in configs}
    kept = _read(path).get(entry, "")
    if kept not in known:
        kept = min(known, key=lambda text: measure(lambda: _run(kernel, grid, args, known[text], device)))
        _write(path, {**_read(path), entry: kept})
    return known[kept]


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def measure(call: Callable[[], None]) -> float:
    """Milliseconds; infinite for what the device can't run (too much shared memory, say)."""
    try:
        return float(triton.testing.do_bench(call, warmup=5, rep=20))
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
        return float("inf")


@cache
def architecture(device: torch.device) -> str:
    """sm_90, gfx942 and the like; cpu in the interpreter."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@cache
def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{name} {architecture(device)}"


def _file(device_name: str) -> Path | None:
    """Where choices are kept between processes: with the other figures (BIGMODEL_CACHE), a file per environment."""
    named = os.environ.get("BIGMODEL_CACHE")
    if named == "off":
        return None
    folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bigmodel_ext")
    environment = f"{device_name}, triton {triton.__version__}, torch {torch.__version__}, kernels {VERSION}"
    try:
        return folder.expanduser() / f"triton-{zlib.crc32(environment.encode()):08x}.json"
    except RuntimeError:  # a user without a home
        return None


def _read(path: Path | None) -> dict[str, str]:
    """A file's choices; none where it is missing or broken: they are only a way to save time."""
    if path is None:
        return {}
    try:
        choices = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def _write(path: Path | None, choices: dict[str, str]) -> None:
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(choices, indent=1, sort_keys=True))
        temporary.replace(path)
    except OSError:  # where nothing can be written, the next process measures again
        with contextlib.suppress(OSError):
            temporary.unlink()


def power_of_2(x: int, least: int = 1) -> int:
    """The smallest power of two that is no less than x and than least."""
    return max(least, 1 << max(0, x - 1).bit_length())
