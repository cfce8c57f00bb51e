"""What `compress` may be asked to do, as data, and which orders of it make sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bigmodel_ext.compress.controller.forms import Form, forms
from bigmodel_ext.convert import Filter, WeightConfig
from bigmodel_ext.train.loop import Loss, TrainConfig


@dataclass(frozen=True)
class Distill:
    """A smaller student takes the model's place, if it learns to keep the budget.

    Args:
        students: a name for each, and what builds it afresh; tried in this order, from the boldest.
        train: how long each learns.
        loss: loss(teacher) -> the loss(model, inputs, targets) that it learns by. None: `compress`'s own.
    """

    students: Mapping[str, Callable[[], nn.Module]]
    train: TrainConfig
    loss: Callable[[nn.Module], Loss] | None = None
    name = "student"

    def __post_init__(self) -> None:
        if not self.students:
            raise ValueError("students must name at least one, got none")


# Arguments of the pruner that the step gives itself.
_SET = (
    "model", "example_inputs", "importance", "pruning_ratio", "pruning_ratio_dict", "global_pruning", "target_macs",
    "iterative_steps",
)  # fmt: skip


@dataclass(frozen=True)
class PruneStructure:
    """Channels, neurons and heads are removed physically (:class:`prune.StructuredPruner`); how many of each group, the
    controller finds.

    Args:
        ratios: shares of a group that may be removed, each in (0, 1).
        train: fine-tuning of each combination that is tried; None: none.
        importance: the pruner's; by default the layers that follow are fitted to what they gave before.
        trials: at most this many combinations are tried.
        shares: of max_drop, each in (0, 1]: what this step may use up, so that something is left for those after it.
            How much is best can't be known before these are done: of several shares each is tried, the steps after this
            one are done for each, and the combination that costs least is taken.
        keywords: more arguments of the pruner: ignored_layers, round_to, granularity, heads, ...; layers by name, as it
            works on copies of the model.
    """

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    train: TrainConfig | None = None
    importance: str = "reconstruction"
    trials: int = 16
    shares: tuple[float, ...] = (0.5,)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    name = "structure"

    def __post_init__(self) -> None:
        if not self.ratios or not all(0.0 < ratio < 1.0 for ratio in self.ratios):
            raise ValueError(f"ratios must be in (0, 1), got {self.ratios}")
        taken = ", ".join(name for name in self.keywords if name in _SET)
        if taken:
            raise ValueError(f"keywords can't hold {taken}: the step sets it")
        if not self.shares or not all(0.0 < share <= 1.0 for share in self.shares):
            raise ValueError(f"shares must be in (0, 1], got {self.shares}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")


@dataclass(frozen=True)
class ChooseLayers:
    """Each layer gets its own form (kernel, share of zeros, bits): the cheapest combination that keeps the budget, as
    the controller finds it (see :mod:`compress.controller`).

    Args:
        forms: what a layer may become.
        train: each combination that is tried is pruned gradually during this much training; None: it is pruned at once,
            and the weights that stay are reconstructed on calibration data.
        trials: at most this many combinations are tried.
        filter_fn: filter_fn(module, fqn) -> bool: which layers may change; default: all linear and Conv2d layers. The
            modules are a copy's: choose by name or class, not by identity.
        prune_fn: prune_fn(module, fqn) -> bool: which of these may also be pruned, again of a copy; default: all.
    """

    forms: tuple[Form, ...] = field(default_factory=forms)
    train: TrainConfig | None = None
    trials: int = 16
    filter_fn: Filter | None = None
    prune_fn: Filter | None = None
    name = "layers"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")


@dataclass(frozen=True)
class Quantize:
    """What is still float is quantized by one method of :mod:`compress.quantize`.

    Args:
        config: says the method.
        keep_float: shares of layers, largest output error first, that stay float: tried in this order.
        filter_fn: filter_fn(module, fqn) -> bool: which layers may change; as of ChooseLayers.
    """

    config: WeightConfig
    keep_float: tuple[float, ...] = (0.0, 0.25, 0.5)
    filter_fn: Filter | None = None
    name = "quantized"

    def __post_init__(self) -> None:
        if not self.keep_float or not all(0.0 <= share <= 1.0 for share in self.keep_float):
            raise ValueError(f"keep_float must be shares in [0, 1], got {self.keep_float}")


Step = Distill | PruneStructure | ChooseLayers | Quantize

# step -> what may not have been done before it, and why
_AFTER: Mapping[type, Mapping[type, str]] = {
    Distill: {
        PruneStructure: "the student would take the pruned model's place, and the pruning be lost: distill first",
        ChooseLayers: "the student would take the compressed model's place: distill first",
        Quantize: "the student would take the quantized model's place: distill first",
    },
    PruneStructure: {
        ChooseLayers: "channels can't be removed from layers whose weights are packed: remove structure first",
        Quantize: "channels can't be removed from layers whose weights are int8: remove structure first",
    },
    ChooseLayers: {
        ChooseLayers: "every layer has its form already: give all forms to one step",
        Quantize: "quantized layers have no float weights left to prune or to choose a form for: quantize last",
    },
    Quantize: {},
}


def check_order(steps: Sequence[Step]) -> None:
    """Raises ValueError, with the reason, for an order that can't work; TypeError for something that is not a step."""
    for i, step in enumerate(steps):
        if type(step) not in _AFTER:
            allowed = ", ".join(kind.__name__ for kind in _AFTER)
            raise TypeError(f"steps must be instances of {allowed}, got {step!r}")
        for earlier in steps[:i]:
            reason = _AFTER[type(step)].get(type(earlier))
            if reason is not None:
                raise ValueError(f"{type(step).__name__} can't come after {type(earlier).__name__}: {reason}")
