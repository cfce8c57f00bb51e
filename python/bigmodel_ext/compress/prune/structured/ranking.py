"""In which order the units of groups are taken out, by their importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.prune.importance import scores
from bigmodel_ext.compress.prune.structured.graph import Graph, torch_pruning
from bigmodel_ext.compress.prune.structured.units import Group, unit_sums

Way = tuple[list[int], list[float]]  # units, and what each costs
_BY_OUTPUT = ("activation", "apoz")  # these say nothing of the weights that take a unit in


def by_name(model: nn.Module, groups: Sequence[Group], importance: str, forward_loop: ForwardLoop | None) -> list[Way]:
    """Units by one of our importances, summed over what goes with a unit."""
    roles = ("out",) if importance in _BY_OUTPUT else ("out", "in")
    names = {fqn for group in groups for role in roles for fqn in group.layers(role)}
    layers = {fqn: m for fqn, m in model.named_modules() if fqn in names and type(m) in (nn.Linear, nn.Conv2d)}
    found = scores(model, layers, importance, forward_loop)
    return [_way(group, unit_sums(group, found, roles)) for group in groups]


def by_object(model: nn.Module, graph: Graph, importance: Callable[[Any], Tensor]) -> list[Way]:
    """Units by a torch-pruning importance; that of a head is of the columns that read it.

    Raises:
        ValueError: the importance gives none, or not one for each channel, or one that is not finite.
    """
    ways = []
    for name, group in graph.groups.items():
        source, units = graph.sources.get(name) or _columns(model, graph, group)
        given = importance(source)
        size = sum(map(len, units))
        if not isinstance(given, Tensor) or given.shape != (size,) or not bool(given.isfinite().all()):
            shown = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"importance gave {shown} for {name!r}, expected {size} finite values")
        given = given.detach().float().cpu()
        ways.append(_way(group, torch.stack([given[list(unit)].sum() for unit in units])))
    return ways


def _columns(model: nn.Module, graph: Graph, group: Group) -> tuple[Any, list[list[int]]]:
    """A torch-pruning group of only the columns that read these units, whatever it makes of the way to them."""
    tp = torch_pruning()
    reader = next(s for s in group.slices if s.role == "in")
    layer = model.get_submodule(reader.fqn)
    node = tp.dependency.Node(layer, None, reader.fqn)
    fn = tp.prune_linear_in_channels
    found, size = tp.dependency.Group(), sum(map(len, reader.index))
    found.add_dep(tp.dependency.Dependency(fn, fn, source=node, target=node), list(range(size)))
    found[0].root_idxs = list(range(size))
    return found, [list(unit) for unit in reader.index]


def _way(group: Group, score: Tensor) -> Way:
    """Ascending; where each of several blocks must lose as many, the lowest of each in turn."""
    blocks = score.view(group.blocks, -1)
    order = blocks.argsort(1)
    units = (order + torch.arange(group.blocks)[:, None] * blocks.shape[1]).T.flatten().tolist()
    return units, [float(score[u]) for u in units]
