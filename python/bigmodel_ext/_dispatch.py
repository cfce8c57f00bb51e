"""Which implementation an op runs. Per op and device there is an ordered list of candidates; the first that does not
refuse the arguments runs, and ``explain`` repeats the refusals of those before it. ``BIGMODEL_BACKEND`` keeps one
backend only and raises if it can't be had."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bigmodel_ext import _native, _ops, _reference

BACKENDS = ("cpu", "cuda", "emulated", "reference")


def never(x: torch.Tensor) -> str | None:
    """A candidate that refuses nothing."""
    return None


@dataclass(frozen=True)
class Candidate:
    backend: str
    run: Callable[..., Any]
    # Why an op whose first argument is this is left to the next candidate, or None. `run` hands it over (fall_back): a
    # kernel tests one thing in line, where asking from outside would cost a tenth of a small call.
    refusal: Callable[[torch.Tensor], str | None] = never


@dataclass(frozen=True)
class Choice:
    """What runs for given arguments, and why the better candidates do not."""

    op: str
    backend: str
    isa: str | None
    refused: tuple[str, ...]

    @property
    def kernel(self) -> str:
        return f"{self.backend}/{self.op}" + (f"/{self.isa}" if self.isa else "")

    @property
    def reason(self) -> str:
        return "; ".join(self.refused) or "first choice"


def _checked_reference(name: str) -> Candidate:
    check, run = _ops.OPS[name][1], getattr(_reference, name)

    def checked(*args: Any) -> Any:
        check(*args)
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        if not torch.is_autocast_enabled(device):
            return run(*args)
        with torch.autocast(device, enabled=False):  # it would lower the precision of the reference's own products
            return run(*args)

    return Candidate("reference", checked)


_NO_KERNEL = frozenset({"dropout_seed"})  # torch's own generator: the reference is the only implementation

_table: dict[tuple[str, str], list[Candidate]] = {}

cpu_kernels: dict[Any, Callable[..., Any]] = {}
"""By torch op: the CPU backend's own function, for calls that need nothing from torch's dispatcher. Empty where another
backend is forced."""


def forced_backend() -> str | None:
    name = os.environ.get("BIGMODEL_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"BIGMODEL_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("BIGMODEL_BACKEND=cuda can't be had: torch.cuda.is_available() is False")
    if name == "emulated" and not _native.has_emulated():
        raise RuntimeError("BIGMODEL_BACKEND=emulated can't be had: bigmodel_ext was built without BIGMODEL_EMULATE")
    return name


def _default(name: str) -> Candidate:
    """What runs where no kernel is registered: the reference, unless another backend is forced."""
    forced = forced_backend()
    if forced in (None, "reference") or name in _NO_KERNEL:
        return _checked_reference(name)

    def refuse(*args: Any) -> Any:
        raise RuntimeError(f"{name}: BIGMODEL_BACKEND={forced} is forced and has no kernel for these tensors")

    return Candidate(forced, refuse, lambda x: f"it has no kernel for {name} on these tensors")


def register(device: str, candidates: dict[str, Candidate]) -> None:
    """Put a backend's kernels (op name -> candidate) before the reference for tensors on `device`."""
    forced = forced_backend()
    for name, candidate in candidates.items():
        if forced in (None, candidate.backend):
            reference = [] if forced else [_checked_reference(name)]
            _table[name, device] = [candidate, *reference]
            _ops.library.impl(name, candidate.run, device.upper())
            if candidate.backend == "cpu":
                cpu_kernels[getattr(torch.ops.bigmodel_ext, name).default] = candidate.run


def backends() -> list[str]:
    """The backends that have kernels here, and the reference."""
    kernels = {c.backend for candidates in _table.values() for c in candidates} - {"reference"}
    return [*sorted(kernels), "reference"]


def fall_back(op: str, x: torch.Tensor, *args: Any) -> Any:
    """What a kernel calls, instead of going on, with arguments that its candidate's `refusal` refuses."""
    for candidate in _table[op, x.device.type]:
        if candidate.refusal(x) is None:
            return candidate.run(x, *args)
    first = _table[op, x.device.type][0]
    raise RuntimeError(f"{op}: the forced backend '{first.backend}' cannot run this: {first.refusal(x)}")


def explain(op: str, *args: Any) -> Choice:
    """What `torch.ops.bigmodel_ext.<op>(*args)` would run, and why.

    Raises ValueError if there is no such op."""
    if op not in _ops.OPS:
        raise ValueError(f"op must be one of {', '.join(_ops.OPS)}, got {op!r}")
    device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
    candidates = _table.get((op, device), [_default(op)])
    refused: list[str] = []
    if candidates[0].backend == "reference" and op not in _NO_KERNEL:
        refused.append("BIGMODEL_BACKEND=reference" if forced_backend() else f"no kernel for this op on {device}")
    for candidate in candidates:
        refusal = candidate.refusal(args[0])
        if refusal is None:
            isa = _native.kernel_isa(op) if candidate.backend == "cpu" else None
            return Choice(op, candidate.backend, isa, tuple(refused))
        refused.append(f"{candidate.backend}: {refusal}")
    raise RuntimeError(f"{op}: no implementation takes these arguments ({'; '.join(refused)})")


for _name in _ops.OPS:
    _ops.library.impl(_name, _default(_name).run, "CompositeExplicitAutograd")
