"""How many units of each layer go, given their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bigmodel_ext.convert import largest_mask


def require_ratio(name: str, value: float) -> None:
    """Raises TypeError, ValueError: not a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in [0, 1), got {value!r}")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


@dataclass(frozen=True)
class Policy:
    """Ratios in torch-pruning's words.

    Args:
        pruning_ratio: share of units that go: of each layer's, or of all layers' with global_pruning.
        pruning_ratio_dict: ratios of their own for some layers, which then take no part in global_pruning.
        global_pruning: rank the units of all layers together, each layer's scores divided by their mean, so that the
            scale of a layer's weights and inputs doesn't matter.
        max_pruning_ratio: in (0, 1]; what global_pruning takes at most of a layer.
        round_to: keep a multiple of this many units in each layer (all, if there are fewer).
    """

    pruning_ratio: float = 0.5
    pruning_ratio_dict: Mapping[str, float] = field(default_factory=dict)
    global_pruning: bool = False
    max_pruning_ratio: float = 1.0
    round_to: int | None = None

    def __post_init__(self) -> None:
        require_ratio("pruning_ratio", self.pruning_ratio)
        for name, ratio in self.pruning_ratio_dict.items():
            require_ratio(f"pruning_ratio_dict[{name!r}]", ratio)
        if not 0.0 < self.max_pruning_ratio <= 1.0:
            raise ValueError(f"max_pruning_ratio must be in (0, 1], got {self.max_pruning_ratio}")
        if self.round_to is not None and self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")

    def gone(self, scores: Mapping[str, Tensor], unit: str, done: float = 1.0) -> dict[str, int]:
        """How many of each layer's units go.

        Args:
            scores: by layer [rows, units]; the count is of each row's.
            unit: what one is called in messages.
            done: in [0, 1]; share of the ratios to go by.

        Raises:
            ValueError: nothing of a layer would stay; the message names it.
        """
        ratios = {fqn: self.pruning_ratio_dict.get(fqn, self.pruning_ratio) for fqn in scores}
        counts = {fqn: round(done * ratios[fqn] * score.shape[1]) for fqn, score in scores.items()}
        together = {fqn: score for fqn, score in scores.items() if fqn not in self.pruning_ratio_dict}
        if self.global_pruning and together:
            counts |= self._ranked_together(together, done)
        for fqn, score in scores.items():
            units = score.shape[1]
            if self.round_to is not None:
                kept = -(-(units - counts[fqn]) // self.round_to) * self.round_to
                counts[fqn] = max(0, units - kept)
            if units and counts[fqn] == units:
                how = " with global_pruning (set max_pruning_ratio)" if fqn in together and self.global_pruning else ""
                raise ValueError(f"pruning_ratio {ratios[fqn]:g}{how} would empty {fqn}: all {units} {unit}s would go")
        return counts

    def _ranked_together(self, scores: Mapping[str, Tensor], done: float) -> dict[str, int]:
        ranked = []
        for score in scores.values():
            flat = score.flatten()
            stay = largest_mask(flat, int(self.max_pruning_ratio * flat.numel()))
            positive = flat.clamp(min=0.0)  # below 0 is what has gone already
            ranked.append(torch.where(stay, torch.inf, flat / positive.mean().clamp(min=1e-30)))
        everything = torch.cat(ranked)
        wanted, most = round(done * self.pruning_ratio * everything.numel()), int((everything < torch.inf).sum())
        if wanted > most:
            raise ValueError(
                f"max_pruning_ratio {self.max_pruning_ratio:g} lets {most} of {everything.numel()} units go, "
                f"pruning_ratio {self.pruning_ratio:g} asks for {wanted}"
            )
        parts = largest_mask(everything, wanted).split([part.numel() for part in ranked])
        return {fqn: int((~part).sum()) for fqn, part in zip(scores, parts, strict=True)}
