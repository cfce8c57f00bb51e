"""Learning from cached answers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_ext.compress.distill.cache import LogitCache
from bigmodel_ext.compress.distill.losses import full
from bigmodel_ext.compress.distill.terms import Step, Term


def top_k_loss(logits: Tensor, values: Tensor, classes: Tensor, rest: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean [sum_k p_k (log p_k - log q_k) + r (log r - log q_r)]``: the divergence of the student q from the
    teacher p with all but the teacher's k best classes as one, of mass r. It is at most that of all classes, and equal
    to it where k is their number.

    Args:
        logits: the student's, [..., classes].
        values, classes, rest: the teacher's, as `answers.top_k` gives them at this temperature.

    Raises:
        ValueError: shapes that don't fit.
    """
    if logits.shape[:-1] != rest.shape or classes.shape != values.shape or values.shape[:-1] != rest.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (logits, values, classes, rest))
        raise ValueError(f"logits must be [..., classes], values and classes [..., k], rest [...], got {shapes}")
    logs = F.log_softmax(full(logits) / temperature, dim=-1)
    known = (values.exp() * (values - logs.gather(-1, classes))).sum(-1)
    if classes.shape[-1] < logs.shape[-1]:
        others = logs.scatter(-1, classes, -torch.inf).logsumexp(-1)
        mass = torch.where(rest > -torch.inf, rest, 0.0)  # a teacher whose rest underflowed adds nothing
        known = known + torch.where(rest > -torch.inf, rest.exp() * (mass - others), 0.0)
    return temperature**2 * known.mean()


class CachedLogits(Term):
    """A teacher's cached answers as a term: `top_k_loss` of the step's example numbers, at the cache's temperature.

    What is cached are answers to the examples as they were: with augmentation the student is taught the answer to the
    unchanged example.

    Raises:
        ValueError: (called) no example numbers were given, or they are out of range, or logits of another shape.
    """

    def __init__(self, cache: LogitCache, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.cache = cache

    def forward(self, step: Step) -> Tensor:
        if step.index is None:
            raise ValueError(
                "cached answers need the examples' numbers: give the loss index=, or targets made by indexed(targets) "
                "and DistillationLoss(indexed=True)"
            )
        if tuple(step.output.shape[1:]) != self.cache.shape:
            wanted, got = ["B", *self.cache.shape], list(step.output.shape)
            raise ValueError(f"the student's logits must be {wanted} as the cached teacher's, got {got}")
        values, classes, rest = (part.to(step.output.device) for part in self.cache[step.index])
        return top_k_loss(step.output, values, classes, rest, self.cache.temperature)
