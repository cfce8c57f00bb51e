"""What a layer gains over its dense form at some number of rows: measured once per shape, machine and thread count.

Figures are kept in memory and in a file, so that another process converts the same way, and at once. A file belongs to
one environment (processor, torch, build of the kernels); ``BIGMODEL_CACHE`` names its folder, or "off" for no file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bigmodel_ext import _dispatch, _measure, _native
from bigmodel_ext._files import replacing
from bigmodel_ext._machine import cpu_name
from bigmodel_ext._plan import entry_of
from bigmodel_ext._probe import Run, dtype_of, probe_of
from bigmodel_ext._surgery import device_of


def over_dense(forms: Sequence[nn.Module], rows: int, like: nn.Module, dense: Callable[[], Run]) -> list[float]:
    """time(dense) / time(form) of each form of one layer at `rows` rows, with the current number of threads.

    Args:
        like: the layer that tells dtype and sizes of the activations.
        dense: makes what is compared with; not called if all is known.
    """
    keys = [_key(form, rows, like) for form in forms]
    new = {key: form for key, form in zip(keys, forms, strict=True) if key not in _memory.known()}
    if new:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):  # must not change what training draws next
            x = probe_of(like).inputs(like, rows)
            runs = [dense(), *(probe_of(form).run(form) for form in new.values())]
            clock = _measure.own_clock() if x.is_cpu else time.perf_counter
            for key, gain in zip(new, _measure.gains(*(_call(run, x) for run in runs), clock=clock), strict=True):
                _memory.add(key, gain)
    return [_memory.known()[key] for key in keys]


def _call(run: Run, x: Tensor) -> Callable[[], object]:
    if x.is_cpu:
        return partial(run, x)

    def finished() -> None:
        run(x)
        torch.accelerator.synchronize()

    return finished


def _key(form: nn.Module, rows: int, like: nn.Module) -> str:
    facts = {
        **(entry_of(form) or {}),
        "rows": rows, "dtype": str(dtype_of(like)).removeprefix("torch."), "device": device_of(like).type,
        "threads": torch.get_num_threads(), "isa": _native.active_isa(), "matmul": torch.get_float32_matmul_precision(),
    }  # fmt: skip
    facts.pop("coding", None)  # concerns files
    if torch.is_autocast_enabled("cpu"):  # it makes the dense layer another one
        facts["autocast"] = str(torch.get_autocast_dtype("cpu")).removeprefix("torch.")
    if "stored" in facts:
        facts["stored"] = f"~{_rounded(facts['stored'])}"
    return " ".join(f"{name}={value}" for name, value in facts.items())


def _rounded(stored: int) -> int:
    """Within 2 %: layers that store nearly as much share their figures."""
    return round(2 ** (round(16 * math.log2(stored)) / 16)) if stored else 0


def file() -> Path | None:
    """Where figures are kept between processes."""
    named = os.environ.get("BIGMODEL_CACHE")
    if named == "off":
        return None
    folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bigmodel_ext")
    try:
        folder = folder.expanduser()
    except RuntimeError:  # a user without a home
        return None
    return folder / f"gains-{zlib.crc32(environment().encode()):08x}.json"


@cache
def environment() -> str:
    """What the figures depend on and no process can change."""
    from bigmodel_ext import __version__

    backend = _dispatch.forced_backend() or "any backend"
    return f"{cpu_name()}, torch {torch.__version__}, bigmodel_ext {__version__}, kernels {_native.build()}, {backend}"


class _Memory:
    def __init__(self) -> None:
        self._read: Path | None = None
        self._gains: dict[str, float] = {}
        self._new: dict[str, float] = {}

    def known(self) -> dict[str, float]:
        path = file()
        if path != self._read:
            self._gains, self._read = {**_read(path), **self._gains}, path
        return self._gains

    def add(self, key: str, gain: float) -> None:
        self._gains[key] = gain
        if math.isfinite(gain) and gain > 0:
            self._new[key] = gain

    def save(self) -> None:
        path = file()
        if self._new and path is not None:
            data = {"environment": environment(), "gains": {**_read(path), **self._new}}
            with contextlib.suppress(OSError):  # where nothing can be written, the next process measures again
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as out:
                    out.write(json.dumps(data, indent=1, sort_keys=True).encode())
            self._new = {}


_memory = _Memory()


def save() -> None:
    """Write what was measured since the last time."""
    _memory.save()


def kept() -> int:
    """How many figures the file has."""
    return len(_read(file()))


def _read(path: Path | None) -> dict[str, float]:
    """A file's figures; none where there is no file, and none with a warning where it is broken."""
    if path is None:
        return {}
    try:
        gains = json.loads(path.read_bytes())["gains"]
        for key, gain in gains.items():
            if type(gain) is not float or not 0.0 < gain < math.inf:
                raise ValueError(f"the gain of {key!r} is {gain!r}")
        return dict(gains)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path} is ignored and layers are measured again: {error!r}", UserWarning, stacklevel=2)
        return {}
