"""MaskPruner: sets the least important units of a model's layers to zero and keeps them there through training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, is_one_of
from bigmodel_ext.compress.prune import importance as _importance
from bigmodel_ext.compress.prune.chosen import Named, chosen, ratios_of
from bigmodel_ext.compress.prune.policy import Policy
from bigmodel_ext.compress.prune.units import GRANULARITIES, HEAD, MaskedHeads
from bigmodel_ext.convert import largest_mask, two_four_mask


class MaskPruner:
    """Zeroes the least important units of layers, by masks that hold while the model trains on (torch-pruning's
    keywords; for removing what it zeroes see the structured pruners).

    ``step()`` prunes. In training call the pruner after each optimizer step (``fit(..., on_step=pruner)``), or once
    `attach` it to the optimizer: whatever momentum does, what is pruned is zero in each forward pass. A unit that has
    gone stays gone: later steps only add to the masks.

    Args:
        model: its nn.Linear and nn.Conv2d are pruned, in place.
        importance: one of ``prune.IMPORTANCES``, see `scores`.
        granularity: "weight"; "1x4", four neighbouring weights of a row; "2:4", two of each four neighbours go, and the
            ratio is 0.5; "neuron", rows of an nn.Linear; "channel", outputs of an nn.Conv2d; "head", those named by
            `heads`. The biases of neurons, channels and heads go with them.
        pruning_ratio, pruning_ratio_dict, global_pruning, max_pruning_ratio, round_to: see `Policy`; the keys of the
            dict are layers, by name or the modules themselves, or modules that hold layers. round_to is for neurons,
            channels and heads.
        ignored_layers: layers that stay as they are, or modules that hold layers, by name or themselves.
        filter_fn: filter_fn(module, fqn) -> bool chooses among the remaining layers.
        forward_loop: calibration data, see `scores`.
        iterative_steps: in how many calls of `step` the ratio is reached, by equal shares.
        per_row: compare weights and blocks with those of the same row only, so that each row loses the same share;
            default: for "wanda", as its paper does, unless with global_pruning.
        heads: for "head": {name of an out projection: how many heads, or `MaskedHeads`}.

    Raises:
        ValueError: an argument is none of those above, names a module the model doesn't have, or leaves no layer.
        TypeError: a ratio is not a number, or heads name something else than nn.Linear.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        importance: str = "magnitude",
        granularity: str = "weight",
        pruning_ratio: float = 0.5,
        pruning_ratio_dict: Mapping[Any, float] | None = None,
        global_pruning: bool = False,
        max_pruning_ratio: float = 1.0,
        ignored_layers: Iterable[Named] = (),
        filter_fn: Callable[[nn.Module, str], bool] | None = None,
        forward_loop: ForwardLoop | None = None,
        iterative_steps: int = 1,
        round_to: int | None = None,
        per_row: bool | None = None,
        heads: Mapping[str, int | MaskedHeads] | None = None,
    ) -> None:
        _importance.require(importance, forward_loop)
        if granularity not in (*GRANULARITIES, HEAD):
            raise ValueError(f"granularity must be one of {', '.join((*GRANULARITIES, HEAD))}, got {granularity!r}")
        if iterative_steps < 1:
            raise ValueError(f"iterative_steps must be at least 1, got {iterative_steps}")
        if bool(heads) != (granularity == HEAD):
            raise ValueError(f"heads belong to granularity 'head', got {heads!r} with {granularity!r}")
        fine = granularity in ("weight", "1x4")
        if round_to is not None and (fine or granularity == "2:4"):
            raise ValueError(f"round_to is for neurons, channels and heads, got {round_to} with {granularity!r}")
        if granularity == "2:4" and (pruning_ratio != 0.5 or pruning_ratio_dict or iterative_steps != 1):
            raise ValueError("granularity '2:4' always prunes 0.5 in one step: leave ratios and iterative_steps out")
        self.model, self.importance, self.granularity = model, importance, granularity
        self.forward_loop, self.iterative_steps = forward_loop, iterative_steps
        self.heads = {fqn: MaskedHeads(h) if isinstance(h, int) else h for fqn, h in (heads or {}).items()}
        wanted = f"layer with a {self._unit}"
        self.layers = chosen(model, self._candidates(), ignored_layers, filter_fn, wanted)
        ratios = ratios_of(model, self.layers, pruning_ratio_dict or {})
        self.policy = Policy(pruning_ratio, ratios, global_pruning, max_pruning_ratio, round_to)
        self.per_row = fine and not global_pruning and (importance == "wanda" if per_row is None else per_row)
        self.masks: dict[str, Tensor] = {}  # bool of the weight's shape: what stays
        self._biases: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # bool [rows, units]
        self._steps = 0

    def _candidates(self) -> dict[str, nn.Module]:
        """The layers whose units can be pruned, by name."""
        modules = dict(self.model.named_modules())
        if not self.heads:
            kinds = GRANULARITIES[self.granularity].kinds
            return {fqn: module for fqn, module in modules.items() if is_one_of(module, kinds)}
        for fqn, heads in self.heads.items():
            heads.check(fqn, modules)
        return {fqn: modules[fqn] for fqn in self.heads}

    def step(self) -> None:
        """Prune another ``1 / iterative_steps`` of what shall go.

        Raises:
            RuntimeError: called more often than iterative_steps.
            ValueError: a layer would be emptied, or what `scores` raises; the model stays as it was.
        """
        if self._steps == self.iterative_steps:
            raise RuntimeError(f"step() was called more often than iterative_steps, which is {self.iterative_steps}")
        self.prune_to((self._steps + 1) / self.iterative_steps)
        self._steps += 1

    @torch.no_grad()
    def prune_to(self, done: float) -> None:
        """Draw the masks for this share, in [0, 1], of the ratios, and apply them. Raises: as `step`."""
        if self.granularity == "2:4" and done != 1.0:
            raise ValueError(f"granularity '2:4' prunes in one step, got the share {done:g}")
        units = self._units()
        if self.granularity == "2:4":
            self._kept = {fqn: two_four_mask(score.clamp(min=0.0)) for fqn, score in units.items()}
        else:
            rows = {fqn: score if self.per_row else score.view(1, -1) for fqn, score in units.items()}
            gone = self.policy.gone(rows, self._unit, done)
            self._kept = {fqn: largest_mask(score, gone[fqn]).view_as(units[fqn]) for fqn, score in rows.items()}
        self._expand()
        self.apply()

    @property
    def _unit(self) -> str:
        return HEAD if self.granularity == HEAD else GRANULARITIES[self.granularity].unit

    def hold(self) -> None:
        """Take the zeros that the layers have for masks: what another method pruned stays pruned in training.

        Raises:
            ValueError: the granularity is "head".
        """
        if self.granularity == HEAD:
            raise ValueError("hold() is not for granularity 'head': zero rows and columns don't tell heads")
        kind = GRANULARITIES[self.granularity]
        self._kept = {
            fqn: kind.units(layer.get_parameter("weight").ne(0).float()) > 0 for fqn, layer in self.layers.items()
        }
        self._expand()

    def _units(self) -> dict[str, Tensor]:
        """The units' scores, -1 for those that have gone."""
        feeding = {name for heads in self.heads.values() for name in heads.feeding}
        modules = dict(self.model.named_modules())
        layers = self.layers | {name: modules[name] for name in feeding}
        found = _importance.scores(self.model, layers, self.importance, self.forward_loop)
        if self.heads:
            units = {fqn: self.heads[fqn].units(fqn, found) for fqn in self.layers}
        else:
            units = {fqn: GRANULARITIES[self.granularity].units(found[fqn]) for fqn in self.layers}
        return {
            fqn: torch.where(self._kept[fqn], score, -1.0) if fqn in self._kept else score
            for fqn, score in units.items()
        }

    def _expand(self) -> None:
        """The masks of weights and biases from those of units."""
        modules = dict(self.model.named_modules())
        shapes = {fqn: m.weight.shape for fqn, m in modules.items() if isinstance(m, (nn.Linear, nn.Conv2d))}
        if self.heads:
            self.masks = {}
            for fqn, keep in self._kept.items():
                for name, mask in self.heads[fqn].weights(fqn, keep, shapes).items():
                    self.masks[name] = mask & self.masks[name] if name in self.masks else mask
            self._biases = {name: mask[:, 0] for name, mask in self.masks.items() if name not in self.layers}
            return
        kind = GRANULARITIES[self.granularity]
        self.masks = {fqn: kind.weights(keep, shapes[fqn]) for fqn, keep in self._kept.items()}
        if kind.of_outputs:
            self._biases = {fqn: keep.flatten() for fqn, keep in self._kept.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Set what the masks leave out to zero."""
        for name, masks in (("weight", self.masks), ("bias", self._biases)):
            for fqn, mask in masks.items():
                tensor = self.model.get_submodule(fqn)._parameters.get(name)
                if tensor is not None:
                    tensor.masked_fill_(~mask.to(tensor.device), 0.0)

    def __call__(self, step: int = 0) -> None:
        """`apply`, as the training loop's on_step."""
        self.apply()

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """`apply` after each of the optimizer's steps; returns a handle whose remove() ends it."""
        return optimizer.register_step_post_hook(lambda *_: self.apply())

    @property
    def pruned(self) -> dict[str, float]:
        """The share of each masked layer's weights that the masks leave out."""
        return {fqn: 1.0 - float(mask.float().mean()) for fqn, mask in self.masks.items()}

    def state(self) -> dict[str, Tensor]:
        """What a resumed training needs of this: which units have stayed, and how often `step` was called."""
        return {"steps": torch.tensor(self._steps), **{f"kept {fqn}": keep for fqn, keep in self._kept.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the masks that another pruner of the same layers had, see `state`; they are applied after the next
        step. Raises ValueError if they are of other layers."""
        kept = {name.removeprefix("kept "): keep for name, keep in state.items() if name != "steps"}
        unknown = sorted(set(kept) - set(self.layers))
        if unknown:
            raise ValueError(f"the state has masks of {', '.join(unknown)}, which this pruner does not prune")
        self._steps, self._kept = int(state["steps"]), kept
        self._expand()
