"""Losses between an output of the student and one of the teacher, as objects with a weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_ext.compress.distill import losses


def checked_weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be finite and at least 0, got {weight}")
    return weight


class PairLoss(nn.Module):
    """``forward(student, teacher) -> scalar``, which counts ``weight`` times. Parameters, if a loss has some, are
    trained with the student (see `DistillationLoss`)."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = checked_weight(weight)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError


class Logits(PairLoss):
    """The teacher's answers, softened: `losses.distillation_loss` of [..., classes] (Hinton, Vinyals & Dean 2015)."""

    def __init__(self, temperature: float = 3.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.distillation_loss(student, teacher, self.temperature)


class Hidden(PairLoss):
    """``mean((P s - t)^2)`` with a learned projection P [teacher_width, student_width] (FitNets, Romero et al. 2015).

    Args:
        student_width, teacher_width: sizes of dimension `dim` of the two: -1 of [B, T, C], 1 of [B, C, H, W].
        normalize: both sides to mean 0 and variance 1 over `dim` first, so that the teacher's scale plays no part.

    P belongs to the loss, is trained with the student and is no part of it.

    Raises:
        ValueError: (called) a width is another, or shapes differ in more than the width.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, dim: int = -1, normalize: bool = False, weight: float = 1.0
    ) -> None:
        super().__init__(weight)
        self.dim, self.normalize = dim, normalize
        self.projection = nn.Linear(student_width, teacher_width, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = (losses.full(x).movedim(self.dim, -1) for x in (student, teacher))
        wanted = (self.projection.in_features, self.projection.out_features)
        if (s.shape[-1], t.shape[-1]) != wanted or s.shape[:-1] != t.shape[:-1]:
            raise ValueError(
                f"widths in dimension {self.dim} must be {wanted[0]} and {wanted[1]} and the rest equal, "
                f"got student {list(student.shape)} and teacher {list(teacher.shape)}"
            )
        s = F.linear(s, self.projection.weight.to(s.dtype))
        if self.normalize:
            s, t = (F.layer_norm(x, x.shape[-1:]) for x in (s, t))
        return F.mse_loss(s, t.to(s.dtype))


class AttentionTransfer(PairLoss):
    """Where feature maps are large: `losses.attention_transfer_loss` (Zagoruyko & Komodakis 2017)."""

    def __init__(self, dim: int = 1, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.dim = dim

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.attention_transfer_loss(student, teacher, self.dim)


class Attention(PairLoss):
    """Attention probabilities [B, heads, T, T]: `losses.attention_loss` (MiniLM, Wang et al. 2020)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.attention_loss(student, teacher)


class SelfRelation(PairLoss):
    """How positions relate, of queries, keys, values or states [B, T, width]: `losses.self_relation_loss` (MiniLMv2,
    Wang et al. 2021)."""

    def __init__(self, heads: int = 1, chunks: int = 1, weight: float = 1.0) -> None:
        super().__init__(weight)
        if heads < 1 or chunks < 1:
            raise ValueError(f"heads and chunks must be at least 1, got {heads} and {chunks}")
        self.heads, self.chunks = heads, chunks

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.self_relation_loss(student, teacher, self.heads, self.chunks)


class Similarity(PairLoss):
    """Which examples of a batch look alike: `losses.similarity_loss` (Tung & Mori 2019)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.similarity_loss(student, teacher)


class Relation(PairLoss):
    """``distance * RKD-D + angle * RKD-A`` over a batch's examples (Park et al. 2019): `losses.distance_relation_loss`,
    `losses.angle_relation_loss`."""

    def __init__(self, distance: float = 1.0, angle: float = 2.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.distance, self.angle = checked_weight(distance), checked_weight(angle)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        total = torch.zeros((), device=student.device)
        if self.distance:
            total = total + self.distance * losses.distance_relation_loss(student, teacher)
        return total + self.angle * losses.angle_relation_loss(student, teacher) if self.angle else total
