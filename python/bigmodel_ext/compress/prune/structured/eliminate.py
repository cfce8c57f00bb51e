"""Which units the layers that read them can best do without, when the other units make up for them as well as least
squares over calibration data can: Optimal Brain Surgeon (Hassibi & Stork 1993) for blocks of columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, observe, rows_of
from bigmodel_ext.compress.prune.structured.units import Group

_DAMPING = 1e-3  # of the mean of H's diagonal, added to it


@dataclass
class Reader:
    """A layer that takes units in: weight [groups, n, K] and second moments [groups, K, K] of its inputs, float64; with
    `shift` the last column is that of a constant input, which a bias or a BatchNorm after the layer makes up for."""

    weight: Tensor
    moments: Tensor
    shift: bool


def readers(
    model: nn.Module, forward_loop: ForwardLoop, layers: Mapping[str, nn.Module], norm_after: Mapping[str, str]
) -> dict[str, Reader]:
    """What is known of these layers from calibration data.

    Raises:
        ValueError: the loop never reached one of them, or its inputs were not finite.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(fqn: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = rows_of(layer, x)
        rows = rows.transpose(0, 1) if rows.dim() == 3 else rows.unsqueeze(0)
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        product = (rows.mT @ rows).double()
        sums[fqn] = sums[fqn] + product if fqn in sums else product
        counts[fqn] += rows.shape[-2]

    observe(model, forward_loop, layers, add)
    return {fqn: _reader(model, fqn, layer, sums[fqn] / counts[fqn], norm_after) for fqn, layer in layers.items()}


def _reader(model: nn.Module, fqn: str, layer: Any, moments: Tensor, norm_after: Mapping[str, str]) -> Reader:
    moments = moments.clone().cpu()
    if not bool(moments.isfinite().all()):
        raise ValueError(f"the calibration inputs of {fqn} are not all finite")
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().double().cpu().flatten(1).unflatten(0, (groups, -1))
    norm = norm_after.get(fqn)
    if norm is not None and getattr(model.get_submodule(norm), "running_mean", None) is None:
        norm = None
    shift = layer.bias is not None or norm is not None
    damping = _DAMPING * torch.diagonal(moments[:, :-1, :-1], dim1=1, dim2=2).mean(1)
    moments[:, :-1, :-1] += torch.eye(moments.shape[1] - 1) * damping.clamp(min=1e-12)[:, None, None]
    if shift:
        bias = torch.zeros(weight.shape[0] * weight.shape[1]) if layer.bias is None else layer.bias.detach()
        weight = torch.cat([weight, bias.double().cpu().view(groups, -1, 1)], -1)
    else:
        moments = moments[:, :-1, :-1]
    return Reader(weight, moments, shift)


def columns_of(weight: Tensor, indices: Sequence[int]) -> list[int]:
    """The columns of ``weight.flatten(1)`` that belong to indices of dimension 1."""
    each = math.prod(weight.shape[2:])
    return [i * each + j for i in indices for j in range(each)]


class _Elimination:
    """One reader's side of taking out the units of a group one after the other: costs for each unit left, and the
    weights and inverse moments after some have gone."""

    def __init__(self, reader: Reader, columns: list[list[int]]) -> None:
        self._weight = reader.weight.clone()
        self._inverse = torch.linalg.inv(reader.moments)
        self._columns = torch.tensor(columns)  # [units, b]
        h, w = reader.moments, reader.weight
        if reader.shift:  # what varies, not the mean
            mean = h[:, -1:, :-1]
            h, w = h[:, :-1, :-1] - mean.mT @ mean, w[:, :, :-1]
        self._energy = float(((w @ h) * w).sum().clamp(min=1e-30))

    def costs(self, units: list[int]) -> Tensor:
        """[len(units)]: the squared error that each unit's absence adds when the others make up for it,
        ``tr(W_B (H^-1)_BB^-1 W_B^T)``, over what the outputs vary."""
        at = self._columns[units]
        blocks = self._inverse[:, at[:, :, None], at[:, None, :]]  # [groups, units, b, b]
        held = self._weight[:, :, at].transpose(1, 2)  # [groups, units, n, b]
        solved = torch.linalg.solve(blocks, held.mT)  # [groups, units, b, n]
        return (held * solved.mT).sum((0, 2, 3)) / self._energy

    def remove(self, units: list[int]) -> None:
        at = self._columns[units].flatten()
        block, across = self._inverse[:, at][:, :, at], self._inverse[:, at]
        solved = torch.linalg.solve(block, across)  # [groups, b, K]
        self._weight -= self._weight[:, :, at] @ solved
        self._inverse -= across.mT @ solved
        self._weight[:, :, at] = 0.0
        self._inverse[:, at] = 0.0
        self._inverse[:, :, at] = 0.0
        self._inverse[:, at, at] = 1.0


def eliminate(group: Group, found: Mapping[str, Reader], model: nn.Module) -> tuple[list[int], list[float]]:
    """The group's units but one, in the order in which they are best taken out, and what each costs then: the sum over
    the layers that take them in of the share of the outputs' variance that the others can't make up for.

    Raises:
        ValueError: none of these layers is in `found`.
    """
    sides = []
    for s in group.slices:
        if s.role == "in" and s.fqn in found:
            weight = model.get_submodule(s.fqn).weight
            assert isinstance(weight, Tensor)
            sides.append(_Elimination(found[s.fqn], [columns_of(weight, index) for index in s.index]))
    if not sides:
        raise ValueError(f"the inputs of no nn.Linear or nn.Conv2d that reads {group.name!r} are known")
    left, order, costs = list(range(group.size)), list[int](), list[float]()
    at_once = max(1, group.size // 128)
    while len(left) > 1:
        block, gone = group.size // group.blocks, [0] * group.blocks
        for unit in order:
            gone[unit // block] += 1
        open_ = [u for u in left if gone[u // block] == min(gone)] if group.blocks > 1 else left
        each = sum((side.costs(open_) for side in sides), torch.zeros(len(open_), dtype=torch.float64))
        lowest = each.argsort()[: 1 if group.blocks > 1 else min(at_once, len(left) - 1)].tolist()
        chosen = [open_[i] for i in lowest]
        order += chosen
        costs += [max(float(each[i]), 0.0) for i in lowest]
        for side in sides:
            side.remove(chosen)
        left = [u for u in left if u not in chosen]
    return order, costs
