"""Terms of a loss that need no teacher: the labels, and penalties on the answers or the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.compress.distill.capture import unwrapped
from bigmodel_ext.compress.distill.losses import full
from bigmodel_ext.compress.distill.pairs import checked_weight


@dataclass(frozen=True)
class Step:
    """What a term sees of a training step."""

    model: nn.Module  # the student
    inputs: Any
    output: Tensor  # the student's answer: logits [..., classes]
    targets: Any
    index: Tensor | None = None  # each example's number in its data set, [B]


class Term(nn.Module):
    """``forward(step) -> scalar``, which counts ``weight`` times."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = checked_weight(weight)

    def forward(self, step: Step) -> Tensor:
        raise NotImplementedError


class Labels(Term):
    """``loss(output, targets)``; cross-entropy, for outputs [..., classes] and targets [...], if none is given."""

    def __init__(self, weight: float = 1.0, loss: Callable[[Tensor, Any], Tensor] | None = None) -> None:
        super().__init__(weight)
        self.loss = loss

    def forward(self, step: Step) -> Tensor:
        if step.targets is None:
            raise ValueError("the labels' term needs targets, got None")
        if self.loss is not None:
            return self.loss(step.output, step.targets)
        if step.output.shape[:-1] != step.targets.shape:
            shapes = f"{list(step.output.shape)} and {list(step.targets.shape)}"
            raise ValueError(f"the output must be [..., classes] and the targets [...], got {shapes}")
        return F.cross_entropy(full(step.output).flatten(0, -2), step.targets.flatten())


class LabelSmoothing(Term):
    """``mean KL(uniform || p)``, p = softmax(output): what label smoothing adds to cross-entropy (Szegedy et al. 2016).

    With weight w on it and 1 - w on the labels, the sum is cross-entropy against (1 - w) onehot + w / classes, up to
    the constant w log(classes).
    """

    def forward(self, step: Step) -> Tensor:
        logs = F.log_softmax(full(step.output), dim=-1)
        return -logs.mean() - math.log(logs.shape[-1])


class ConfidencePenalty(Term):
    """``mean (log(classes) - H(p))``, p = softmax(output): low entropy costs (Pereyra et al. 2017; the constant makes
    it 0 for the uniform distribution)."""

    def forward(self, step: Step) -> Tensor:
        logs = F.log_softmax(full(step.output), dim=-1)
        return (logs.exp() * logs).sum(-1).mean() + math.log(logs.shape[-1])


class WeightPenalty(Term):
    """``sum |w|^power / power`` over the student's matrices that are trained (norms and biases go free): power 2 is
    weight decay as a term, power 1 wants zeros."""

    def __init__(self, weight: float, power: int = 2) -> None:
        super().__init__(weight)
        if power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {power}")
        self.power = power

    def forward(self, step: Step) -> Tensor:
        trained = [p for p in step.model.parameters() if p.requires_grad and p.dim() >= 2]
        if not trained:
            raise ValueError("the student has no matrices that are trained: nothing to penalize")
        return torch.stack([full(p).abs().pow(self.power).sum() for p in trained]).sum() / self.power


class StartingPoint(Term):
    """``1/2 sum ||w - w0||^2 + fresh/2 sum ||w||^2``: L2-SP (Li, Grandvalet & Davoine 2018): parameters that `start`
    has stay near it, others (a new head) near 0.

    Args:
        start: a model or state dict with w0, copied; names are the student's.

    Raises:
        ValueError: (called) none of the student's parameters are in start, or one has another shape there.
    """

    def __init__(self, start: nn.Module | Mapping[str, Tensor], weight: float, fresh: float = 0.0) -> None:
        super().__init__(weight)
        state = dict(unwrapped(start).named_parameters()) if isinstance(start, nn.Module) else start
        self._start = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.fresh = checked_weight(fresh)

    def forward(self, step: Step) -> Tensor:
        known, fresh = [], []
        for name, p in unwrapped(step.model).named_parameters():
            start = self._start.get(name)
            if start is None:
                fresh.append(full(p).square().sum())
                continue
            if start.shape != p.shape:
                raise ValueError(f"{name} must be {list(p.shape)} in start, got {list(start.shape)}")
            start = self._start[name] = start.to(p.device)
            known.append((full(p) - full(start)).square().sum())
        if not known:
            some = ", ".join(list(self._start)[:5])
            raise ValueError(f"none of the student's parameters are in start, which has {some}")
        total = torch.stack(known).sum() / 2
        return total + self.fresh / 2 * torch.stack(fresh).sum() if fresh and self.fresh else total
