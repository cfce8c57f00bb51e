"""What a student can imitate, as functions of its tensors and the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def full(x: Tensor) -> Tensor:
    """float32 at least: losses are sums over many small numbers."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _same_shape(student: Tensor, teacher: Tensor, names: str = "student and teacher") -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{names} must have one shape, got {list(student.shape)} and {list(teacher.shape)}")


def _same_batch(student: Tensor, teacher: Tensor, dims: int) -> None:
    if student.dim() < dims or teacher.dim() < dims or len(student) != len(teacher):
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher must have at least {dims} dimensions and one batch size, got {shapes}")


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean KL(softmax(t / T) || softmax(s / T))`` (Hinton, Vinyals & Dean 2015).

    T^2 keeps the gradient's size: it would shrink as 1 / T^2 otherwise.

    Args:
        student_logits, teacher_logits: [..., classes], [B, T, classes] of a language model, say; the mean is over all
            but the last dimension.
        temperature: T > 0; high ones bring out how the teacher ranks the wrong classes.

    Raises:
        ValueError: temperature is not above 0, or shapes differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    _same_shape(student_logits, teacher_logits, "student_logits and teacher_logits")
    student = F.log_softmax(full(student_logits) / temperature, dim=-1).flatten(0, -2)
    teacher = F.log_softmax(full(teacher_logits) / temperature, dim=-1).flatten(0, -2)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def similarity_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """``||norm(S S^T) - norm(T T^T)||_F^2 / B^2``, norm: each row to length 1 (Tung & Mori 2019).

    It compares which examples of a batch look alike to each model, so features may differ in width and no projection
    has to be learned. Both are [B, any].

    Raises:
        ValueError: batch sizes differ.
    """
    _same_batch(student_features, teacher_features, 1)
    rows = [full(f).reshape(len(f), -1) for f in (student_features, teacher_features)]
    gram = [F.normalize(f @ f.T, dim=1) for f in rows]
    return (gram[0] - gram[1]).square().sum() / len(student_features) ** 2


def attention_transfer_loss(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """``mean_b ||norm(A(s_b)) - norm(A(t_b))||^2``, ``A(x) = sum over dim of x^2``, norm: to length 1 (Zagoruyko &
    Komodakis 2017): where a model looks, whatever its number of channels.

    Args:
        student, teacher: [B, ...]: [B, C, H, W] with dim=1, [B, T, C] with dim=-1; equal but for dim.

    Raises:
        ValueError: fewer than 3 dimensions, or the maps' shapes differ.
    """
    _same_batch(student, teacher, 3)
    maps = [full(x).square().sum(dim) for x in (student, teacher)]
    _same_shape(maps[0], maps[1], "the student's and the teacher's attention maps")
    s, t = (F.normalize(m.flatten(1), dim=1) for m in maps)
    return (s - t).square().sum(1).mean()


def attention_loss(student: Tensor, teacher: Tensor, eps: float = 1e-12) -> Tensor:
    """``mean KL(t || s)`` over batch, heads and queries, of attention probabilities (MiniLM, Wang et al. 2020).

    Args:
        student, teacher: [B, heads, T, T] or [B, T, T], rows sum to 1. Different numbers of heads are averaged first.

    Raises:
        ValueError: shapes differ in more than heads.
    """
    s, t = full(student), full(teacher)
    if s.dim() == t.dim() == 4 and s.shape[1] != t.shape[1]:
        s, t = s.mean(1), t.mean(1)
    _same_shape(s, t, "the student's and the teacher's attention")
    s, t = s.clamp_min(eps).log(), t.clamp_min(eps).log()
    return (t.exp() * (t - s)).sum(-1).mean()


def self_relation_loss(student: Tensor, teacher: Tensor, heads: int = 1, chunks: int = 1) -> Tensor:
    """``mean KL(R(t) || R(s))``, ``R(x) = softmax(x_h x_h^T / sqrt(d))`` per relation head h of width d: how a
    sequence's positions relate to each other (MiniLMv2, Wang et al. 2021). Widths may differ, heads are ours to choose.

    Args:
        student, teacher: [B, T, width]: queries, keys, values or hidden states.
        heads: relation heads; must divide both widths.
        chunks: parts of the last dimension that are related by themselves: 3 for a layer that puts out q, k and v.

    Raises:
        ValueError: not 3 dimensions, batch or T differ, or heads * chunks does not divide a width.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher must be [B, T, width] of one B and T, got {shapes}")
    relations = []
    for x in (student, teacher):
        if x.shape[-1] % (heads * chunks):
            raise ValueError(f"heads * chunks = {heads} * {chunks} must divide the width, got {list(x.shape)}")
        x = full(x).unflatten(-1, (chunks * heads, -1)).transpose(1, 2)
        relations.append(F.log_softmax(x @ x.mT / x.shape[-1] ** 0.5, dim=-1))
    s, t = relations
    return (t.exp() * (t - s)).sum(-1).mean()


def _distances(x: Tensor) -> Tensor:
    """[B, B] of x [B, d], over the mean of those above 0."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # exact, with gradient 0 at distance 0
    positive = distances[distances > 0]
    return distances / positive.mean() if len(positive) else distances


def distance_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_ij huber(d_ij(s) - d_ij(t))``, d: distances of a batch's examples over their mean (RKD-D, Park et al.
    2019).

    Both are [B, any], B >= 2, and may differ in width.

    Raises:
        ValueError: batch sizes differ.
    """
    _same_batch(student, teacher, 2)
    s, t = (full(x).flatten(1) for x in (student, teacher))
    with torch.no_grad():
        wanted = _distances(t)
    return F.smooth_l1_loss(_distances(s), wanted.to(s.dtype))


def _angles(x: Tensor) -> Tensor:
    """[B, B, B]: the cosine at i of the angle between j and k; 0, with no gradient, where i equals j or k."""
    edges = x[None] - x[:, None]
    lengths = edges.norm(dim=-1, keepdim=True)
    unit = torch.where(lengths > 1e-6, edges / lengths.clamp_min(1e-6), 0.0)
    return unit @ unit.mT


def angle_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_ijk huber(cos_ijk(s) - cos_ijk(t))``, cos: of the angle at i between j and k (RKD-A, Park et al. 2019).

    Both are [B, any] and may differ in width; memory is B^2 * width, B^3 for the angles.

    Raises:
        ValueError: batch sizes differ.
    """
    _same_batch(student, teacher, 2)
    s, t = (full(x).flatten(1) for x in (student, teacher))
    with torch.no_grad():
        wanted = _angles(t)
    return F.smooth_l1_loss(_angles(s), wanted.to(s.dtype))
