"""Pruning in one shot, without training: layer by layer, weights go and those that stay make up for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, layers_of, observe
from bigmodel_ext.compress.prune import solve
from bigmodel_ext.compress.prune.chosen import Named, chosen, ratios_of
from bigmodel_ext.compress.prune.moments import Moments, moments_beside, own_moments
from bigmodel_ext.compress.prune.policy import Policy
from bigmodel_ext.compress.prune.units import GRANULARITIES
from bigmodel_ext.convert import largest_mask, two_four_mask

METHODS = ("admm", "sparsegpt")
MATCHES = ("dense", "own")
FINE = ("weight", "1x4", "2:4")


@dataclass(frozen=True)
class LayerFit:
    """error: the share of the layer's output variance (about its mean; plain power if it has no bias) that is lost,
    with regard to the best that dense weights could do; magnitude_error: what magnitude pruning to the same ratio
    loses."""

    fqn: str
    pruned: float  # share of weights that are zero
    error: float
    magnitude_error: float


@dataclass(frozen=True)
class Reconstruction:
    layers: tuple[LayerFit, ...]

    def __str__(self) -> str:
        width = max(len(layer.fqn) for layer in self.layers)
        lines = [f"{'layer':{width}}  pruned  output lost  by magnitude"]
        lines += [f"{x.fqn:{width}}  {x.pruned:6.1%}  {x.error:11.2%}  {x.magnitude_error:12.2%}" for x in self.layers]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Pattern:
    """Which weights of a matrix stay, by their scores; see solve.Choose."""

    granularity: str
    ratio: float
    per_row: bool

    def __call__(self, score: Tensor, first: int) -> Tensor:
        if self.granularity == "2:4":
            return two_four_mask(score)
        kind = GRANULARITIES[self.granularity]
        units = kind.units(score)
        rows = units if self.per_row else units.view(1, -1)
        before = first * units.numel() // (score.shape[1] * units.shape[0]) * (1 if self.per_row else units.shape[0])
        gone = round(self.ratio * (before + rows.shape[1])) - round(self.ratio * before)
        return kind.weights(largest_mask(rows, gone).view_as(units), score.shape)


def reconstruct_(
    model: nn.Module,
    forward_loop: ForwardLoop,
    *,
    pruning_ratio: float = 0.5,
    pruning_ratio_dict: Mapping[Any, float] | None = None,
    granularity: str = "weight",
    method: str = "admm",
    match: str = "dense",
    sequential: bool = True,
    per_row: bool = False,
    damping: float = 0.01,
    ignored_layers: Iterable[Named] = (),
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> Reconstruction:
    """Prune a model's nn.Linear and nn.Conv2d, in place, so that on calibration data each layer's output changes least.

    With x a layer's inputs in the model pruned so far and z those in the dense model, W [N,K] its weights and b its
    bias, it minimises over all V with the zeros asked for, and over the new bias c,
    ``E ||(W z + b) - (V x + c)||^2 + d ||V - W||^2``: so it mends the errors of the layers before it too (as Li et al.
    2025, "GPTAQ", do for quantization), and means are kept exactly. d is `damping` times the mean square of x.

    - "admm": the zeros by ADMM, the weights that stay by least squares (ALPS: Meng et al. 2024).
    - "sparsegpt": both in one pass over the columns (Frantar & Alistarh 2023): several times as fast, less exact. As in
      the paper with match="own".

    Time: a run of forward_loop for each layer (one for all if not sequential), and for an N x K layer some 10 K^3 +
    10^2 N K^2 operations ("sparsegpt": K^3 + N K^2); memory: the dense model's copy and some K^2.

    Args:
        model: any model that runs under forward_loop; it runs in eval mode.
        forward_loop: calls the model on calibration data, the same at each call; some K rows make it good.
        pruning_ratio, pruning_ratio_dict, ignored_layers, filter_fn: as for `MaskPruner`.
        granularity: "weight", "1x4" or "2:4" (of ratio 0.5).
        match: "dense": as above; "own": as if z were x, each layer by itself.
        sequential: prune layers in the order in which the model calls them, each with the inputs that the pruned ones
            before it make; otherwise all with the dense model's inputs.
        per_row: the same share of each row, instead of each layer.
        damping: at least 0; above, for there may be fewer rows than weights to find.

    Returns:
        what each layer lost.

    Raises:
        ValueError: an argument is none of those above; a layer would be emptied, was never reached, had no rows or
            NaN inputs, or is a convolution that pads with something else than zeros; the model is then as it was.
        TypeError: a ratio is not a number.
    """
    for name, value, allowed in (
        ("granularity", granularity, FINE), ("method", method, METHODS), ("match", match, MATCHES)
    ):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if not 0.0 < damping < torch.inf:
        raise ValueError(f"damping must be above 0 and finite, got {damping}")
    if granularity == "2:4" and (pruning_ratio != 0.5 or pruning_ratio_dict):
        raise ValueError("granularity '2:4' always prunes 0.5: leave ratios out")
    unit = GRANULARITIES[granularity].unit
    layers = chosen(model, layers_of(model), ignored_layers, filter_fn, f"layer with a {unit}")
    ratios = dict.fromkeys(layers, pruning_ratio) | ratios_of(model, layers, pruning_ratio_dict or {})
    _refuse_empty(layers, Policy(pruning_ratio, ratios), granularity, per_row)
    fits: list[LayerFit] = []
    with _unchanged_if_raised(layers):
        for fqn, seen in _moments(model, forward_loop, layers, sequential, match):
            pattern = _Pattern(granularity, ratios[fqn], per_row)
            fits.append(_reconstruct(fqn, layers[fqn], seen, pattern, method, damping))
    return Reconstruction(tuple(fits))


def reconstruct_layer_(
    fqn: str,
    layer: nn.Module,
    seen: Moments,
    pruning_ratio: float,
    granularity: str = "weight",
    method: str = "admm",
    damping: float = 0.01,
) -> LayerFit:
    """:func:`reconstruct_` of one layer, in place, from the moments of its inputs (`own_moments`); ratio, granularity
    and method as there. For trying out many ratios: nothing is checked."""
    return _reconstruct(fqn, layer, seen, _Pattern(granularity, pruning_ratio, False), method, damping)


@contextmanager
def _unchanged_if_raised(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    saved = [(p, p.detach().clone()) for layer in layers.values() for p in layer.parameters()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, value in saved:
                p.copy_(value)
        raise


def _moments(
    model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module], sequential: bool, match: str
) -> Iterator[tuple[str, Moments]]:
    """Each layer's moments when its turn comes, in the order in which the model calls them."""
    if not sequential:
        yield from own_moments(model, forward_loop, layers).items()
        return
    order: dict[str, None] = {}
    observe(model, forward_loop, layers, lambda fqn, layer, x, y: order.setdefault(fqn))
    dense = copy.deepcopy(model).eval() if match == "dense" else None
    for fqn in order:
        one = {fqn: layers[fqn]}
        if dense is None:
            yield fqn, own_moments(model, forward_loop, one)[fqn]
        else:
            yield fqn, moments_beside(model, dense, forward_loop, fqn, layers[fqn])


def _refuse_empty(layers: Mapping[str, nn.Module], policy: Policy, granularity: str, per_row: bool) -> None:
    units = {fqn: GRANULARITIES[granularity].units(layer.get_parameter("weight")) for fqn, layer in layers.items()}
    rows = {fqn: unit if per_row else unit.view(1, -1) for fqn, unit in units.items()}
    policy.gone(rows, GRANULARITIES[granularity].unit)


@torch.no_grad()
def _reconstruct(fqn: str, layer: nn.Module, seen: Moments, pattern: _Pattern, method: str, damping: float) -> LayerFit:
    """Prune one layer; its weights and bias are written at the end."""
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    x, z, xx, zx = seen.means(fqn, centred=bias is not None)
    groups, k = x.shape
    dense = weight.detach().double().reshape(groups, -1, k)
    parts, lost = [], torch.zeros(3, dtype=torch.float64)
    for w, second, cross in zip(dense, xx, zx, strict=True):
        target, h = _target(w, second, cross, damping)
        v = _pruned(target, h, pattern, method)
        plain = torch.where(pattern(w.float().square(), 0), w.float(), 0.0)
        lost += torch.tensor([solve.error(m, target, second) for m in (v, plain, torch.zeros_like(v))])
        parts.append(v)
    v = torch.stack(parts)
    weight.copy_(v.reshape(weight.shape))
    if bias is not None:
        bias.add_(((dense @ z[:, :, None]) - (v.double() @ x[:, :, None])).flatten().to(bias.dtype))
    error, plain_error, whole = lost.tolist()
    of = whole if whole > 0 else 1.0
    return LayerFit(fqn, 1.0 - float((v != 0).double().mean()), error / of, plain_error / of)


def _target(w: Tensor, second: Tensor, cross: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """What the layer would best be without zeros, T = (W E[z x^T] + d W) H^-1, and H = E[x x^T] + d I, float32. Inputs
    that are always 0 (about the mean) get the weight 0 and go first."""
    diagonal = second.diag()
    dead = diagonal <= 1e-12 * diagonal.max()
    d = damping * diagonal.mean()
    h = second + torch.diag(torch.where(dead, 1.0, d))
    target = torch.linalg.solve(h, (w @ cross + d * w).mT).mT
    return torch.where(dead, 0.0, target).float(), h.float()


def _pruned(target: Tensor, h: Tensor, pattern: _Pattern, method: str) -> Tensor:
    if method == "sparsegpt":
        return solve.sparsegpt(target, h, pattern)
    return solve.least_squares(target, h, solve.admm(target, h, pattern))
