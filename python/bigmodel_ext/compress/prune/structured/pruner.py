"""Pruning that makes a model smaller: whole channels, neurons and attention heads are taken out of all layers that
depend on them, and what is left is an ordinary dense model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext._pruned import Cut, Entry, Surgery, surgery_plan
from bigmodel_ext.compress.calibrate import ForwardLoop
from bigmodel_ext.compress.prune.importance import IMPORTANCES
from bigmodel_ext.compress.prune.structured.eliminate import Reader, eliminate, readers
from bigmodel_ext.compress.prune.structured.graph import Graph, prunable, trace
from bigmodel_ext.compress.prune.structured.heads import Heads, head_groups
from bigmodel_ext.compress.prune.structured.policy import Cost, Curve, local, macs, ranked, to_macs
from bigmodel_ext.compress.prune.structured.ranking import by_name, by_object
from bigmodel_ext.compress.prune.structured.refit import Values, refit
from bigmodel_ext.compress.prune.structured.units import Group, cuts_of
from bigmodel_ext.compress.prune.structured.verify import runner, verify

RECONSTRUCTION = "reconstruction"
KINDS = ("channel", "neuron", "head", "width")
Layer = nn.Module | str


@dataclass(frozen=True)
class Pruned:
    """What a step did: for each group (its units' kind and the numbers before and after), and to the model as a whole;
    macs: multiply-accumulates of its linear and convolution layers in one call with the example inputs."""

    groups: Mapping[str, tuple[str, int, int]]
    macs: tuple[int, int]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        lines = [f"{name}: {before} -> {after} {kind}s" for name, (kind, before, after) in self.groups.items()]
        return "\n".join(
            [
                *lines,
                f"multiply-accumulates: {self.macs[0]} -> {self.macs[1]} ({self.macs[0] / self.macs[1]:.2f}x fewer)",
                f"parameters: {self.parameters[0]} -> {self.parameters[1]}",
            ]
        )


class StructuredPruner:
    """Takes channels, neurons and heads out of a model, in place, in `iterative_steps` calls of :meth:`step`.

    Which layers depend on each other is read off one call of the model (torch-pruning's dependency graph, Fang et al.
    2023); attention heads are found by common names of layers and attributes or declared. Every step is tried on copies
    first: the smaller model's outputs must be those of the model with the same units silenced. What was taken out is
    recorded on the modules: :func:`save_model` writes it, and :func:`surgery_plan` reads it. Parameters are new objects
    afterwards: make the optimizer after the step. Layers whose outputs are the model's are never pruned.

    Args:
        model: any module; the layers to prune must be nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, not converted ones.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments for one call.
        importance: "magnitude", "activation", "apoz", "taylor" or "wanda", as of :func:`scores`, summed over all that
            goes with a unit; "reconstruction", what the layers that read the units lose when the other units make up
            for one as well as least squares can; or an importance object of torch-pruning.
        pruning_ratio: share of each group's units that is gone after the last step, in [0, 1); default 0.5.
        pruning_ratio_dict: other ratios for some layers or attention modules (or tuples of them), by module or name.
        global_pruning: the ratio holds for all groups together, and units go where they cost least.
        ignored_layers: modules, or names, whose outputs stay.
        round_to: outputs of a layer are left in multiples of this.
        iterative_steps: number of steps.
        forward_loop: forward_loop(model) runs the model on calibration data; for "taylor" with loss.backward().
        granularity: of "channel" (convolutions), "neuron" (linear layers), "head", "width" (of a residual stream with
            norms or embeddings).
        heads: a :class:`Heads` by attention module, or name, where names are not common ones.
        kv_groups: with fewer key/value than query heads, a unit is a key/value head with all its query heads; if
            False, query heads only, as many of each key/value head.
        target_macs: instead of pruning_ratio, the share of multiply-accumulates to leave, in (0, 1): with
            global_pruning units go where they cost least for each multiply-accumulate saved, else all groups lose
            the same share.
        max_pruning_ratio: the most that a group may lose.
        compensate: whether the layers that follow are fitted, one after the other, to what they gave before, by least
            squares over the calibration data (each takes one run of forward_loop); default: with "reconstruction".
        forward_fn: forward_fn(model, example_inputs) instead of the call.

    Raises:
        ImportError: torch-pruning is not installed.
        TypeError, ValueError: the model can't be traced; nothing in it can be pruned; a ratio would leave nothing of a
            layer; a layer named is not in the model or can't be pruned; another argument is not as above. The model is
            as before.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: str | Callable[[Any], Tensor] = "magnitude",
        pruning_ratio: float | None = None,
        pruning_ratio_dict: Mapping[Layer | tuple[Layer, ...], float] | None = None,
        global_pruning: bool = False,
        ignored_layers: Sequence[Layer] = (),
        round_to: int = 1,
        iterative_steps: int = 1,
        *,
        forward_loop: ForwardLoop | None = None,
        granularity: Collection[str] = ("channel", "neuron", "head"),
        heads: Mapping[Layer, Heads] | None = None,
        kv_groups: bool = True,
        target_macs: float | None = None,
        max_pruning_ratio: float = 1.0,
        compensate: bool | None = None,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        self.model, self.example_inputs, self.forward_fn = model, example_inputs, forward_fn
        self.importance, self.forward_loop, self.kv_groups = importance, forward_loop, kv_groups
        self.compensate = importance == RECONSTRUCTION if compensate is None else compensate
        self.global_pruning, self.target_macs = global_pruning, target_macs
        self.pruning_ratio = 0.5 if pruning_ratio is None else pruning_ratio
        self.round_to, self.iterative_steps, self.max_pruning_ratio = round_to, iterative_steps, max_pruning_ratio
        self.granularity, self.current_step = tuple(granularity), 0
        self._check(pruning_ratio)
        self._ignored = {sub for layer in ignored_layers for sub in self._inside(layer, "ignored_layers")}
        self._heads = {self._fqn(owner, "heads"): layout for owner, layout in (heads or {}).items()}
        self._graph: Graph | None = self._analysed()
        groups = self._graph.groups
        self._initial = {name: group.size for name, group in groups.items()}
        self._macs = macs(model, self._graph.calls)
        self._scopes = self._scopes_of(pruning_ratio_dict or {}, groups)

    def _check(self, pruning_ratio: float | None) -> None:
        names = (*IMPORTANCES, RECONSTRUCTION)
        if isinstance(self.importance, str) and self.importance not in names:
            raise ValueError(f"importance must be one of {', '.join(names)}, got {self.importance!r}")
        if not isinstance(self.importance, str) and not callable(self.importance):
            raise TypeError(f"importance must be a name or callable, got {self.importance!r}")
        needs = self.compensate or (isinstance(self.importance, str) and self.importance != "magnitude")
        if needs and self.forward_loop is None:
            what = "compensate=True" if self.compensate else f"importance {self.importance!r}"
            raise ValueError(f"{what} needs a forward_loop that runs the model on calibration data")
        unknown = [kind for kind in self.granularity if kind not in KINDS]
        if unknown or not self.granularity:
            raise ValueError(f"granularity must be some of {', '.join(KINDS)}, got {list(self.granularity)}")
        for name in ("round_to", "iterative_steps"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not 0.0 < self.max_pruning_ratio <= 1.0:
            raise ValueError(f"max_pruning_ratio must be in (0, 1], got {self.max_pruning_ratio}")
        if self.target_macs is not None and not 0.0 < self.target_macs < 1.0:
            raise ValueError(f"target_macs must be in (0, 1), got {self.target_macs}")
        if self.target_macs is not None and pruning_ratio is not None:
            raise ValueError(f"give pruning_ratio or target_macs, got {pruning_ratio} and {self.target_macs}")

    def _fqn(self, layer: Layer, argument: str) -> str:
        for fqn, module in self.model.named_modules(remove_duplicate=False):
            if module is layer or fqn == layer:
                return fqn
        shown = repr(layer) if isinstance(layer, str) else f"a {type(layer).__name__}"
        raise ValueError(f"{argument} names {shown}, which is not in the model")

    def _inside(self, layer: Layer, argument: str) -> list[str]:
        fqn = self._fqn(layer, argument)
        return [f"{fqn}.{sub}".strip(".") for sub, _ in self.model.get_submodule(fqn).named_modules()]

    def _scopes_of(
        self, ratios: Mapping[Layer | tuple[Layer, ...], float], groups: Mapping[str, Group]
    ) -> list[tuple[set[str], float, bool]]:
        """(names of groups, their ratio, whether it is the rest's) of each set that is ranked together."""
        scopes, taken = list[tuple[set[str], float, bool]](), set[str]()
        for layers, ratio in ratios.items():
            names: set[str] = set()
            for layer in layers if isinstance(layers, tuple) else (layers,):
                fqn, inside = self._fqn(layer, "pruning_ratio_dict"), set(self._inside(layer, "pruning_ratio_dict"))
                found = {fqn} & set(groups) or {n for n, g in groups.items() if inside & set(g.layers("out"))}
                if not found:
                    why = (self._graph or Graph()).reasons.get(fqn, "it has no units of the granularities asked for")
                    raise ValueError(f"pruning_ratio_dict names {fqn!r}, which can't be pruned: {why}")
                names |= found - taken
            taken |= names
            scopes.append((names, ratio, False))
        scopes.append((set(groups) - taken, self.pruning_ratio, True))
        for names, ratio, _ in scopes:
            if not 0.0 <= ratio < 1.0:
                name = min(names, default="")
                left = f": it would leave none of the {groups[name].size} {groups[name].kind}s of {name!r}"
                raise ValueError(f"a pruning ratio must be in [0, 1), got {ratio}{left if name and ratio >= 1 else ''}")
        return scopes

    def _analysed(self) -> Graph:
        heads, reasons = head_groups(self.model, self._heads, self.kv_groups)
        graph = trace(self.model, self.example_inputs, self.forward_fn, heads)
        graph.reasons.update(reasons)
        return prunable(self.model, graph, self.granularity, self._ignored)

    def step(self) -> Pruned:
        """Prune on to the next step's share of the goal.

        Raises:
            ValueError: all steps are done; calibration never reached a layer, or what it gave was not finite; the
                smaller model would not do what it should. The model is as before.
        """
        if self.current_step >= self.iterative_steps:
            raise ValueError(f"all {self.iterative_steps} steps are done")
        graph = self._graph = self._graph or self._analysed()
        found = self._readers(graph)
        curves = self._curves(graph, found)
        counts = self._counts(graph, curves)
        removed = [(c.group, sorted(c.order[: counts[c.group.name]])) for c in curves if counts[c.group.name]]
        verify(self.model, removed, runner(self.example_inputs, self.forward_fn))
        before = self._figures(graph)
        cuts = cuts_of(self.model, removed)
        values = self._refitted(graph, cuts) if self.compensate and removed else {}
        Surgery(self.model, cuts).apply()
        with torch.no_grad():
            for (fqn, name), value in values.items():
                getattr(self.model.get_submodule(fqn), name).copy_(value)
        self.current_step, self._graph = self.current_step + 1, None
        after = self._figures(graph)
        sizes = {c.group.name: (c.group.kind, c.group.size, c.group.size - counts[c.group.name]) for c in curves}
        return Pruned(sizes, (before[0], after[0]), (before[1], after[1]))

    def _figures(self, graph: Graph) -> tuple[int, int]:
        return macs(self.model, graph.calls), sum(p.numel() for p in self.model.parameters())

    def _refitted(self, graph: Graph, cuts: Mapping[str, Cut]) -> Values:
        """New values for the layers from the first on that lost inputs, as all later ones see other inputs too."""
        assert self.forward_loop is not None
        smaller = copy.deepcopy(self.model)
        Surgery(smaller, cuts).apply()
        layers, started = dict[str, list[int] | None](), False
        for fqn in graph.calls:
            kept = cuts[fqn].kept.get("weight", {}) if fqn in cuts else {}
            started = started or 1 in kept
            if started and type(self.model.get_submodule(fqn)) in (nn.Linear, nn.Conv2d):
                layers[fqn] = kept.get(0)
        backward = self.importance == "taylor"
        return refit(self.model, smaller, self.forward_loop, layers, graph.norm_after, backward)

    def _readers(self, graph: Graph) -> dict[str, Reader]:
        if self.importance != RECONSTRUCTION:
            return {}
        assert self.forward_loop is not None
        names = {fqn for group in graph.groups.values() for fqn in group.layers("in")}
        layers = {fqn: m for fqn, m in self.model.named_modules() if fqn in names and type(m) in (nn.Linear, nn.Conv2d)}
        return readers(self.model, self.forward_loop, layers, graph.norm_after)

    def _curves(self, graph: Graph, found: Mapping[str, Reader]) -> list[Curve]:
        groups = list(graph.groups.values())
        if self.importance == RECONSTRUCTION:
            ways = [eliminate(group, found, self.model) for group in groups]
        elif isinstance(self.importance, str):
            ways = by_name(self.model, groups, self.importance, self.forward_loop)
        else:
            ways = by_object(self.model, graph, self.importance)
        return [
            Curve(group, order, costs, self._initial[group.name], self.round_to, self.max_pruning_ratio)
            for group, (order, costs) in zip(groups, ways, strict=True)
        ]

    def _counts(self, graph: Graph, curves: Sequence[Curve]) -> dict[str, int]:
        done, counts = (self.current_step + 1) / self.iterative_steps, dict[str, int]()
        cost = Cost(self.model, graph.calls)
        for names, ratio, rest in self._scopes:
            these = [curve for curve in curves if curve.group.name in names]
            if rest and self.target_macs is not None:
                for curve in curves:  # those with a ratio of their own are smaller by now
                    cost.take(curve.group, counts.get(curve.group.name, 0))
                counts |= to_macs(these, cost, self._macs * self.target_macs**done, self.global_pruning)
            else:
                counts |= (ranked if self.global_pruning else local)(these, ratio * done)
        return counts

    @property
    def groups(self) -> dict[str, tuple[str, int]]:
        """What is pruned: by group, the kind of its units (channel, neuron, head or width) and how many there are."""
        self._graph = self._graph or self._analysed()
        return {name: (group.kind, group.size) for name, group in self._graph.groups.items()}

    @property
    def plan(self) -> list[Entry]:
        """All that was pruned from the model: see :func:`surgery_plan`."""
        return surgery_plan(self.model)
