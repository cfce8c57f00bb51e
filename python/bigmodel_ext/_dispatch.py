"""Which implementation an op runs. Per op and device there is an ordered list of candidates; the first that does not
refuse the arguments runs, and ``explain`` repeats the refusals of those before it. ``BIGMODEL_BACKEND`` keeps one
backend only and raises if it can't be had."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bigmodel_ext import _measured, _native, _ops, _reference

BACKENDS = ("cpu", "cuda", "triton", "emulated", "reference")


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
    measured: str = ""  # why this one of several kernels

    @property
    def kernel(self) -> str:
        return f"{self.backend}/{self.op}" + (f"/{self.isa}" if self.isa else "")

    @property
    def reason(self) -> str:
        return "; ".join((*self.refused, *filter(None, (self.measured,)))) or "first choice"


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
_CONVERSIONS = frozenset({"pack_panel_csr", "ising_start", "ising_descend"})  # make weights; the CPU alone has kernels

_table: dict[tuple[str, str], list[Candidate]] = {}

unavailable: dict[str, str] = {}
"""By kind of device: why kernels that were built can't run here."""

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
    if name == "triton":
        problem = why_no_triton()
        if problem is not None:
            raise RuntimeError(f"BIGMODEL_BACKEND=triton can't be had: {problem}")
    return name


def why_no_triton() -> str | None:
    """What keeps Triton's kernels from running here, in its interpreter too; it is not imported to find out."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "torch.cuda.is_available() is False, and TRITON_INTERPRET is not 1"


def _default(name: str) -> Candidate:
    """What runs where no kernel is registered: the reference, unless another backend is forced."""
    forced = forced_backend()
    if forced in (None, "reference") or name in _NO_KERNEL or (name in _CONVERSIONS and forced != "cpu"):
        return _checked_reference(name)

    def refuse(*args: Any) -> Any:
        why = f": {unavailable[forced]}" if forced in unavailable else ""
        raise RuntimeError(f"{name}: BIGMODEL_BACKEND={forced} is forced and has no kernel for these tensors{why}")

    return Candidate(forced, refuse, lambda x: f"it has no kernel for {name} on these tensors")


def register(device: str, candidates: dict[str, Candidate]) -> None:
    """Put a backend's kernels (op name -> candidate) before the reference for tensors on `device`, and behind those of
    backends that were registered earlier."""
    forced = forced_backend()
    for name, candidate in candidates.items():
        if forced in (None, candidate.backend):
            reference = [] if forced else [_checked_reference(name)]
            before = [c for c in _table.get((name, device), ()) if c.backend != "reference"]
            _table[name, device] = [*before, candidate, *reference]
            if not before:
                run = _by_measurement(name) if _measured.has(name) and device != "cpu" else candidate.run
                _ops.library.impl(name, run, device.upper())
            if candidate.backend == "cpu":
                cpu_kernels[getattr(torch.ops.bigmodel_ext, name).default] = candidate.run


def _candidates(op: str, x: torch.Tensor) -> list[Candidate]:
    """In the order in which they are tried for x: what was measured to be the fastest comes first."""
    candidates = _table[op, x.device.type]
    row = _measured.find(op, x)
    return candidates if row is None else sorted(candidates, key=lambda c: c.backend != row.backend)


def _by_measurement(op: str) -> Callable[..., Any]:
    def run(x: torch.Tensor, *args: Any) -> Any:
        return _candidates(op, x)[0].run(x, *args)

    return run


def _why_this_kernel(op: str, x: torch.Tensor, candidates: list[Candidate]) -> str:
    kernels = [c.backend for c in candidates if c.backend != "reference"]
    if len(kernels) < 2:
        return ""
    row = _measured.find(op, x)
    return f"{kernels[0]} first: not measured" if row is None or row.backend not in kernels else str(row)


def backends() -> list[str]:
    """The backends that have kernels here, and the reference."""
    kernels = {c.backend for candidates in _table.values() for c in candidates} - {"reference"}
    return [*sorted(kernels), "reference"]


def fall_back(op: str, x: torch.Tensor, *args: Any) -> Any:
    """What a kernel calls, instead of going on, with arguments that its candidate's `refusal` refuses."""
    for candidate in _candidates(op, x):
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
    candidates = _candidates(op, args[0]) if (op, device) in _table else [_default(op)]
    refused: list[str] = []
    if candidates[0].backend == "reference" and op not in _NO_KERNEL:
        no_kernel = f"no kernel for this op on {device}" + (f": {unavailable[device]}" if device in unavailable else "")
        refused.append("BIGMODEL_BACKEND=reference" if forced_backend() else no_kernel)
    for candidate in candidates:
        refusal = candidate.refusal(args[0])
        if refusal is None:
            isa = _native.kernel_isa(op) if candidate.backend == "cpu" else None
            return Choice(op, candidate.backend, isa, tuple(refused), _why_this_kernel(op, args[0], candidates))
        refused.append(f"{candidate.backend}: {refusal}")
    raise RuntimeError(f"{op}: no implementation takes these arguments ({'; '.join(refused)})")


for _name in _ops.OPS:
    _ops.library.impl(_name, _default(_name).run, "CompositeExplicitAutograd")
