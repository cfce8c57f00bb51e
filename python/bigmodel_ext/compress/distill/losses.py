"""Knowledge distillation: a student learns a teacher's answers, not only the labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean KL(softmax(t / T) || softmax(s / T))`` over all but the last dimension (Hinton et al. 2015).

    T^2 keeps the gradient's size: it would shrink as 1 / T^2 otherwise.

    Args:
        student_logits, teacher_logits: [B, classes], or [B, T, classes].
        temperature: T > 0; high ones bring out how the teacher ranks the wrong classes.

    Raises:
        ValueError: temperature is not above 0, or shapes differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"student_logits and teacher_logits must have one shape, got {shapes}")
    student = F.log_softmax(student_logits.flatten(0, -2) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.flatten(0, -2) / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def similarity_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """``||norm(S S^T) - norm(T T^T)||_F^2 / B^2``, norm: each row to length 1 (Tung & Mori 2019).

    It compares which examples of a batch look alike to each model, so features may differ in width and no projection
    has to be learned. Both are [B, any].
    """
    gram = [F.normalize(f.flatten(1) @ f.flatten(1).T, dim=1) for f in (student_features, teacher_features)]
    return (gram[0] - gram[1]).square().sum() / len(student_features) ** 2


@dataclass(frozen=True)
class Distillation:
    """``soft_weight * distillation_loss + (1 - soft_weight) * cross_entropy + feature_weight * similarity_loss``.

    The last term needs models with ``features(inputs) -> [B, any]`` and ``head(features) -> logits``.
    """

    teacher: nn.Module
    temperature: float = 3.0
    soft_weight: float = 0.9
    feature_weight: float = 0.0

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.feature_weight:
            with torch.no_grad():
                teacher_features = self.teacher.features(inputs)  # type: ignore[operator]
                teacher_logits = self.teacher.head(teacher_features)  # type: ignore[operator]
            features = model.features(inputs)  # type: ignore[operator]
            logits = model.head(features)  # type: ignore[operator]
            extra = self.feature_weight * similarity_loss(features, teacher_features)
        else:
            with torch.no_grad():
                teacher_logits = self.teacher(inputs)
            logits, extra = model(inputs), torch.zeros(())
        soft = distillation_loss(logits, teacher_logits, self.temperature)
        hard = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        return self.soft_weight * soft + (1 - self.soft_weight) * hard + extra
