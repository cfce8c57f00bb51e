"""Hamiltonian quantization: weights as spins in a state of low energy, where the energy is the layer's output error.

``W ~ V = sum_b alpha_b s_b``, s in {-1, +1}, scales per output and group of inputs, found by lowering

    E = ||X (W - V)^T||^2 / M + damping * mean(diag H) * ||W - V||^2,    H = X^T X / M,

an Ising energy whose spins couple through H. The parts are known: scales by alternating least squares (Xu et al.
2018), the sequential start (Frantar et al. 2022, "GPTQ", there for a uniform grid), coordinate descent on the layer's
output error (Behdin et al. 2023, "QuantEase") and annealing (Kirkpatrick et al. 1983).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bigmodel_ext import functional as F
from bigmodel_ext.compress.calibrate import ForwardLoop, observe, second_moments
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.compress.quantize._spins import Problem, Schedule, State, search
from bigmodel_ext.convert import Filter, WeightConfig, convertible
from bigmodel_ext.nn import BinaryCodedLinear

METHODS = ("descent", "annealing")
_HOT, _COLD = 4.0, 0.03  # annealing's first and last temperature: beyond them it only loses or gains nothing


@dataclass(frozen=True)
class HamiltonianConfig(WeightConfig):
    """:class:`nn.BinaryCodedLinear`, of spins that minimise the error of the layer's output on calibration data;
    nn.Linear only.

    bits: spins to a weight, 1 to 4. group_size: inputs that share `bits` scales of 16 bits, a multiple of 8: a weight
    takes ``bits * (1 + 16 / group_size)`` bits.
    method: "descent", or "annealing" after it: up to some per cent less energy at few bits, for about twice the time.
    sweeps: over all weights, at most, in a descent; steps: sweeps at falling temperatures, for annealing.
    restarts: how often the search begins anew with the scales it found; seed: of annealing's draws.
    damping: this share of H's mean diagonal is added to it, against fitting the calibration data's noise.
    sequential: each layer is calibrated on what the layers before it give once they are quantized, in a pass of the
        forward_loop for each layer; False: all of them in one pass, on the model as it is.
    """

    bits: int = 3
    group_size: int = 128
    method: str = "descent"
    sweeps: int = 20
    steps: int = 50
    restarts: int = 1
    damping: float = 0.003
    sequential: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("bits", 1, 4), ("group_size", 8, None), ("sweeps", 1, None), ("steps", 2, None),
                                ("restarts", 0, None), ("seed", 0, 2**63 - 1)):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < low or (high is not None and value > high):
                wanted = f"in [{low}, {high}]" if high is not None else f"at least {low}"
                raise ValueError(f"{name} must be {wanted}, got {value}")
        if self.group_size % 8:
            raise ValueError(f"group_size must be a multiple of 8, got {self.group_size}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if isinstance(self.damping, bool) or not isinstance(self.damping, (int, float)):
            raise TypeError(f"damping must be a number above 0, got {self.damping!r}")
        if not 0.0 < self.damping <= 1e6:
            raise ValueError(f"damping must be in (0, 1e6], got {self.damping}")
        if not isinstance(self.sequential, bool):
            raise TypeError(f"sequential must be True or False, got {self.sequential!r}")

    @property
    def schedule(self) -> Schedule:
        """Temperatures fall by the same factor from step to step."""
        falls = [_HOT * (_COLD / _HOT) ** (i / (self.steps - 1)) for i in range(self.steps)]
        return Schedule(self.sweeps, self.restarts, tuple(falls) if self.method == "annealing" else (), self.seed)


def spins_of(linear: nn.Linear, moments: Tensor | None, config: HamiltonianConfig) -> State:
    """The spins and scales that the search finds for a layer's weight, with the energy after each stage.

    Args:
        linear: N outputs, K inputs; any floating dtype; not changed.
        moments: H = X^T X / M [K,K] of its inputs, as `calibrate.second_moments` gives it; None: the identity.

    Raises:
        ValueError: the weight or H holds NaN or infinity, or H has another shape.
    """
    if not bool(linear.weight.isfinite().all()):
        raise ValueError("the weight holds NaN or infinity")
    with torch.no_grad():
        problem = Problem(linear.weight, moments, config.group_size, float(config.damping))
        return search(problem, linear, config.bits, config.schedule)


def _order(model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers' names, the one that is called first first."""
    called: dict[str, None] = {}

    def note(fqn: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        called.setdefault(fqn)

    observe(model, forward_loop, layers, note)
    return list(called)


class _Calibration:
    """Gives each layer's moments, in the order in which the layers are to be made."""

    def __init__(
        self, model: nn.Module, forward_loop: ForwardLoop | None, layers: Mapping[str, nn.Module], sequential: bool
    ) -> None:
        self.loop, self.names, self.moments = forward_loop, list(layers), dict[str, Tensor]()
        self.copy: nn.Module | None = None
        if forward_loop is None or not layers:
            return
        self.names = _order(model, forward_loop, layers)
        if sequential:
            self.copy = copy.deepcopy(model)  # takes the quantized weights, so that the user's model does not
        else:
            self.moments = second_moments(model, forward_loop, layers)

    def of(self, fqn: str) -> Tensor | None:
        if self.copy is None or self.loop is None:
            return self.moments.get(fqn)
        return second_moments(self.copy, self.loop, {fqn: self.copy.get_submodule(fqn)})[fqn]

    def quantized(self, fqn: str, weight: Tensor) -> None:
        if self.copy is not None:
            layer = cast(nn.Linear, self.copy.get_submodule(fqn))
            with torch.no_grad():
                layer.weight.copy_(weight)


def _figures(state: State, config: HamiltonianConfig, calibrated: bool, seconds: float) -> dict[str, float]:
    data = "" if calibrated else " (H = identity)"
    stages = {f"energy {stage}{data}": energy for stage, energy in state.energies.items()}
    bits = config.bits + 16.0 * state.alpha[0].numel() / max(state.codes.shape[1], 1)
    return {"bits/weight": bits, **stages, "seconds": seconds}


def apply(
    model: nn.Module, config: HamiltonianConfig, forward_loop: ForwardLoop | None, filter_fn: Filter | None
) -> Report:
    """Find each layer's spins and exchange it for an :class:`nn.BinaryCodedLinear`; see `quantize_`.

    The report's figures: ``bits/weight``, scales counted; the energy after each stage of the search (`_spins.search`),
    ``energy nearest`` being that of the code which knows no data; ``seconds``. Without a forward_loop H is the
    identity, the energies are ``||W - V||^2`` and their names say so.

    Raises:
        ValueError: the loop never reached a layer, or its inputs hold NaN or infinity. The model is as it was.
    """
    layers = convertible(model, filter_fn)
    calibration = _Calibration(model, forward_loop, layers, config.sequential)
    made: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for fqn in calibration.names:
        linear, began = cast(nn.Linear, layers[fqn]), time.perf_counter()
        if 0 in linear.weight.shape or not bool(linear.weight.isfinite().all()):
            made[fqn] = "its weight is empty or holds NaN or infinity"
            continue
        try:
            state = spins_of(linear, calibration.of(fqn), config)
            made[fqn] = BinaryCodedLinear.from_codes(linear, state.spins, state.alpha, config.group_size)
        except ValueError as error:
            raise ValueError(f"{fqn}: {error}") from error
        calibration.quantized(fqn, F.ising_decode(state.codes, state.alpha, config.group_size))
        figures[fqn] = _figures(state, config, forward_loop is not None, time.perf_counter() - began)
    return exchange_made(model, layers, made, config, forward_loop, filter_fn, figures)
