"""Probabilistic quantization: weights drawn from a discrete distribution under a budget of bits, entropy-coded in
files, int8 in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._choose import not_slower
from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.measure import threads
from bigmodel_ext.compress.quantize._exchange import exchange_made
from bigmodel_ext.compress.quantize._rate import Rounded, Target, allocate, nearest
from bigmodel_ext.compress.quantize._report import Report
from bigmodel_ext.compress.quantize._rounding import Block
from bigmodel_ext.compress.quantize._sensitivity import Call, calibrated, output_gains
from bigmodel_ext.convert import Filter, WeightConfig, convertible
from bigmodel_ext.formats import coded
from bigmodel_ext.nn import Int8Conv2d, Int8Linear

_FORMS: dict[type[nn.Module], Any] = {nn.Linear: Int8Linear, nn.Conv2d: Int8Conv2d}
_ROUNDINGS = ("auto", "unbiased", "entropy")


@dataclass(frozen=True)
class ProbabilisticInt8Config(WeightConfig):
    """:class:`nn.Int8Linear` and :class:`nn.Int8Conv2d` on coarser grids, whose weights ``save_model`` writes as rANS
    streams of at most bits_per_weight on average, tables and scales included.

    bits_per_weight in (0, 8]. rounding, with w a weight plus what earlier errors in its row move it by (without
    calibration data: the weight), q among the multiples of the layer's step:

    - "unbiased": ``P(ceil) = w / step - floor(w / step)``; E[q] is the weight, for any step. Its variance is twice the
      error of rounding to nearest, which costs half a bit.
    - "entropy": ``P(q | w) ~ exp(-(cost (w - q)^2 + price bits(q)) / (temperature price log2 e))``, price the slope of
      distortion over rate. At temperature 1 that is ``p(q) exp(-beta (w - q)^2)``, what Blahut and Arimoto's algorithm
      iterates; at 0 the likeliest q is taken, which wastes no bits on chance. Not unbiased: likelier q attract.
    - "auto": unbiased in the layers where that is no worse than plain rounding to nearest at the same entropy, measured
      by the error of the layer's output, as feeding errors back gains more than chance costs (the rule with
      calibration data, hardly ever without); "entropy" in the others.

    seed: of all chance; the same seed and data give the same weights, on any number of threads.
    """

    bits_per_weight: float = 4.0
    rounding: str = "auto"
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bits_per_weight", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0.0 < self.bits_per_weight <= 8.0:
            raise ValueError(f"bits_per_weight must be in (0, 8], got {self.bits_per_weight}")
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature must be in [0, 100], got {self.temperature}")
        if self.rounding not in _ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(_ROUNDINGS)}, got {self.rounding!r}")
        if type(self.seed) is not int:
            raise TypeError(f"seed must be an int, got {self.seed!r}")


def _blocks(fqn: str, layer: nn.Module, moment: Tensor | None) -> list[Block]:
    weight: Any = layer.weight
    rows = weight.detach().float().cpu().flatten(1)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"the weight of {fqn!r} holds NaN or infinity")
    if moment is None or moment.dim() == 2:
        return [Block.of(rows, None if moment is None else moment.cpu())]
    return [Block.of(own, h.cpu()) for own, h in zip(rows.chunk(len(moment)), moment, strict=True)]


def _drawn(targets: list[Target], config: ProbabilisticInt8Config) -> tuple[dict[str, Rounded], dict[str, float]]:
    """(each layer's weights, the distortion of rounding them to nearest at the same entropy)."""
    made = allocate(targets, config.bits_per_weight)
    plain = {target.fqn: nearest(target, made[target.fqn].entropy) for target in targets}
    worse = [t for t in targets if t.unbiased and made[t.fqn].distortion > plain[t.fqn]]
    if config.rounding == "auto" and worse:
        for target in worse:
            target.unbiased, target.counts = False, None
        made = allocate(targets, config.bits_per_weight)
        plain = {target.fqn: nearest(target, made[target.fqn].entropy) for target in targets}
    return made, plain


def _filled(layer: nn.Module, rounded: Rounded) -> nn.Module:
    new = _FORMS[type(layer)].from_float(layer)
    weight: Any = layer.weight
    new.packed = new._pack(rounded.q.view(weight.shape).to(weight.device))
    new.weight_scale = rounded.step.to(weight.device)
    new.coding = "rans"
    return new


def _figures(target: Target, rounded: Rounded, plain: float) -> dict[str, float]:
    return {
        "bits/weight": 8.0 * rounded.coded_bytes / target.numel,
        "entropy": rounded.entropy / target.numel,
        "coded bytes": float(rounded.coded_bytes),
        "step": float(rounded.step.median()),
        "distortion": rounded.distortion,
        "nearest": plain,
        "unbiased": float(target.unbiased),
    }


def _slower(layer: nn.Module, rows: tuple[int, ...]) -> str | None:
    """Why the layer stays dense, or None: settled before bits are given out."""
    weight: Any = layer.weight
    if not rows or weight.device.type != "cpu":
        return None
    with torch.no_grad():
        form = not_slower(layer, [_FORMS[type(layer)].from_float(layer)], rows)
    return form if isinstance(form, str) else None


def _targets(
    layers: dict[str, nn.Module],
    moments: dict[str, Tensor],
    calls: list[Call],
    model: nn.Module,
    config: ProbabilisticInt8Config,
) -> list[Target]:
    blocks = {fqn: _blocks(fqn, layer, moments.get(fqn)) for fqn, layer in layers.items()}
    gains = output_gains(model, calls, layers, blocks) if moments else dict.fromkeys(layers, 1.0)
    chosen = config.rounding
    return [
        Target(
            fqn, own, gains[fqn], chosen == "unbiased" or (chosen == "auto" and bool(moments)), config.temperature,
            config.seed,
        )
        for fqn, own in blocks.items()
    ]  # fmt: skip


def apply(
    model: nn.Module,
    config: ProbabilisticInt8Config,
    forward_loop: ForwardLoop | None,
    filter_fn: Filter | None,
) -> Report:
    """Exchange the model's layers, in place, for int8 ones with weights drawn at random; see the config.

    One Lagrange multiplier holds for all layers: ``step = theta / sqrt(gain * mean_k 1 / U_kk^2)`` with theta such that
    the streams take bits_per_weight. With a forward_loop, layers and directions count by what they do to the model's
    output on its data, and rounding errors are fed back (see `_rounding`, `_sensitivity`); it holds [K, K] float32 for
    each layer meanwhile, and the model is run once more for each layer on up to 8 of the loop's batches. Without, every
    weight counts the same.

    Figures of the report: bits/weight (of weights and scales in a file), entropy (bits/weight, of q, in the classes of
    its stream), coded bytes, step (the median row's), distortion (``trace((W - Q) H (W - Q)^T)``), nearest (the
    distortion of rounding to nearest with one step for the layer at the same entropy), unbiased (1 or 0).

    Raises:
        ValueError: forward_loop never reached a layer; a weight, or the model's output, is not finite; not even tables
            fit into so few bits. ImportError: constriction is missing. The model is as it was whatever is raised.
    """
    coded.require_coder()
    layers = convertible(model, filter_fn, tuple(_FORMS))
    made: dict[str, nn.Module | str] = {}
    for fqn, layer in layers.items():
        weight: Any = layer.weight
        reason = "it has no weights" if not weight.numel() else _slower(layer, config.rows)
        if reason is not None:
            made[fqn] = reason
    chosen = {fqn: layer for fqn, layer in layers.items() if fqn not in made}
    figures: dict[str, dict[str, float]] = {}
    if chosen:
        with threads(1), torch.no_grad():  # sums of floats depend on how they are shared among threads
            moments, calls = calibrated(model, forward_loop, chosen) if forward_loop is not None else ({}, [])
            targets = _targets(chosen, moments, calls, model, config)
            drawn, plain = _drawn(targets, config)
            for target in targets:
                fqn = target.fqn
                made[fqn] = _filled(chosen[fqn], drawn[fqn])
                figures[fqn] = _figures(target, drawn[fqn], plain[fqn])
    return exchange_made(model, layers, made, config, forward_loop, filter_fn, figures)
