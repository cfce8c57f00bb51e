"""Devices for which the CUDA kernels were built, and others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from bigmodel_ext import _dispatch
from bigmodel_ext._dispatch import Candidate

Capability = tuple[int, int]


def runs(architecture: str, capability: Capability) -> bool:
    """Whether code for an architecture, as nvcc names it, runs on a device: of sm_80 on every 8.x, of sm_90a on 9.0
    alone, of compute_100 (PTX) on 10.0 and all later ones."""
    kind, _, name = architecture.partition("_")
    digits = name.rstrip("af")
    built = (int(digits[:-1]), int(digits[-1]))
    if kind == "compute":
        return capability >= built
    if name.endswith("a"):
        return capability == built
    return capability[0] == built[0] and capability >= built


def problems(architectures: list[str], devices: list[Capability]) -> dict[int, str]:
    """By index, why the build does not run on a device."""
    found, built = {}, ", ".join(architectures)
    for index, (major, minor) in enumerate(devices):
        if not any(runs(a, (major, minor)) for a in architectures):
            has = f"cuda:{index} has compute capability {major}.{minor}"
            found[index] = f"{has}, and the CUDA kernels were built for {built}"
    return found


def kept_from(problems: dict[int, str], candidates: dict[str, Candidate]) -> dict[str, Candidate]:
    """The candidates, which refuse tensors on these devices."""
    return {op: _refusing(problems, op, c) for op, c in candidates.items()} if problems else candidates


def _refusing(problems: dict[int, str], op: str, candidate: Candidate) -> Candidate:
    def refusal(x: Tensor) -> str | None:
        return problems.get(x.device.index) or candidate.refusal(x)

    def run(x: Tensor, *args: Any) -> Any:
        return _dispatch.fall_back(op, x, *args) if x.device.index in problems else candidate.run(x, *args)

    return replace(candidate, run=run, refusal=refusal)
