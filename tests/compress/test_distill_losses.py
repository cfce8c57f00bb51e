"""Each formula against its definition spelled out, and what it must not depend on."""

import math

import pytest
import torch
from bigmodel_ext.compress import distill
from bigmodel_ext.compress.distill import (
    ConfidencePenalty,
    Hidden,
    Labels,
    LabelSmoothing,
    Relation,
    SelfRelation,
    StartingPoint,
    Step,
    WeightPenalty,
)
from torch import nn
from torch.nn import functional as F


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_logits_of_a_sequence_are_its_positions():
    s, t = doubles(2, 5, 7), doubles(2, 5, 7)
    flat = distill.distillation_loss(s.flatten(0, 1), t.flatten(0, 1), 2.0)
    assert distill.distillation_loss(s, t, 2.0).item() == pytest.approx(flat.item(), rel=1e-12)


def test_half_precision_is_summed_in_float32():
    s, t = torch.randn(4, 1000).bfloat16(), torch.randn(4, 1000).bfloat16()
    assert distill.distillation_loss(s, t, 2.0).item() == distill.distillation_loss(s.float(), t.float(), 2.0).item()


@pytest.mark.parametrize("dim", [1, -1])
def test_hidden_is_the_projected_error_over_any_dimension(dim):
    loss = Hidden(3, 5, dim=dim)
    s, t = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 4, 3)
    s, t = (s, torch.randn(2, 5, 4, 3)) if dim == 1 else (s, torch.randn(2, 3, 4, 5))
    projected = torch.einsum("bcxy,oc->boxy" if dim == 1 else "bxyc,oc->bxyo", s, loss.projection.weight)
    assert loss(s, t).item() == pytest.approx((projected - t).square().mean().item(), rel=1e-5)


def test_a_learned_projection_finds_a_linear_teacher_and_normalizing_ignores_its_scale():
    s = torch.randn(64, 6)
    t = s @ torch.randn(6, 9) * 100 + 7
    loss = Hidden(6, 9, normalize=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = loss(s, t).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss(s, t).backward()
        optimizer.step()
    assert loss(s, t).item() < 0.05 * first
    assert loss(s, t * 3).item() == pytest.approx(loss(s, t).item(), rel=1e-4)


def test_attention_transfer_is_the_formula_and_ignores_channels():
    s, t = doubles(3, 4, 5, 5), doubles(3, 9, 5, 5)
    maps = [(x**2).sum(1).flatten(1) for x in (s, t)]
    s1, t1 = (m / m.norm(dim=1, keepdim=True) for m in maps)
    assert distill.attention_transfer_loss(s, t).item() == pytest.approx(((s1 - t1) ** 2).sum(1).mean().item())
    same = distill.attention_transfer_loss(s, 3 * torch.cat([s, s], 1)).item()
    assert same == pytest.approx(0, abs=1e-20)
    with pytest.raises(ValueError, match=r"attention maps must have one shape, got \[3, 5, 5\] and \[3, 4, 5\]"):
        distill.attention_transfer_loss(s, t[:, :, :4])


def test_attention_is_the_divergence_of_rows_and_heads_may_differ():
    s, t = doubles(2, 3, 4, 4).softmax(-1), doubles(2, 3, 4, 4).softmax(-1)
    expected = (t * (t / s).log()).sum(-1).mean().item()
    assert distill.attention_loss(s, t).item() == pytest.approx(expected, rel=1e-9)
    assert distill.attention_loss(s, t.mean(1, keepdim=True)).item() == pytest.approx(
        distill.attention_loss(s.mean(1), t.mean(1)).item()
    )
    zeros = torch.eye(4).expand(2, 3, 4, 4)  # a causal map's zeros
    assert distill.attention_loss(zeros, zeros).item() == pytest.approx(0, abs=1e-6)


def test_self_relation_is_the_formula_whatever_the_widths():
    s, t = doubles(2, 5, 12), doubles(2, 5, 24)
    loss = SelfRelation(heads=2, chunks=3)
    expected = 0.0
    for b in range(2):
        for part in range(6):
            a, c = s[b, :, 2 * part : 2 * part + 2], t[b, :, 4 * part : 4 * part + 4]
            p, q = (c @ c.T / 2).softmax(-1), (a @ a.T / math.sqrt(2)).softmax(-1)
            expected += (p * (p / q).log()).sum(-1).mean().item() / 12
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match=r"heads \* chunks = 2 \* 3 must divide the width, got \[2, 5, 13\]"):
        loss(doubles(2, 5, 13), t)
    with pytest.raises(ValueError, match=r"of one B and T, got \[2, 4, 12\] and \[2, 5, 24\]"):
        loss(s[:, :4], t)


def test_relations_are_the_formulas():
    s, t = doubles(4, 3), doubles(4, 6)
    distance, angle = 0.0, 0.0

    def pairwise(x):
        d = [[(x[i] - x[j]).norm().item() for j in range(4)] for i in range(4)]
        mean = sum(map(sum, d)) / 12
        return [[v / mean for v in row] for row in d]

    def cosine(x, i, j, k):
        return F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0).item() if i not in (j, k) else 0.0

    def huber(v):
        return 0.5 * v * v if abs(v) < 1 else abs(v) - 0.5

    ds, dt = pairwise(s), pairwise(t)
    for i in range(4):
        for j in range(4):
            distance += huber(ds[i][j] - dt[i][j]) / 16
            for k in range(4):
                angle += huber(cosine(s, i, j, k) - cosine(t, i, j, k)) / 64
    assert distill.distance_relation_loss(s, t).item() == pytest.approx(distance, rel=1e-9)
    assert distill.angle_relation_loss(s, t).item() == pytest.approx(angle, rel=1e-9)
    assert Relation(0.5, 3.0)(s, t).item() == pytest.approx(0.5 * distance + 3 * angle, rel=1e-6)


@pytest.mark.parametrize("loss", [distill.distance_relation_loss, distill.angle_relation_loss])
def test_relations_ignore_rotation_scale_and_shift_and_bear_equal_examples(loss):
    x = doubles(6, 4)
    moved = x @ torch.linalg.qr(doubles(4, 4)).Q * 5 + 2
    assert loss(moved, x).item() == pytest.approx(0, abs=1e-12)
    collapsed = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    twins = torch.cat([x[:3], x[:3]]).requires_grad_()
    for student in (collapsed, twins):
        (grad,) = torch.autograd.grad(loss(student, doubles(6, 4)), student)
        assert grad.isfinite().all()
        assert grad.abs().max() < 1e3


def _step(output, targets=None, model=None, index=None):
    return Step(model or nn.Linear(1, 1), None, output, targets, index)


def test_label_smoothing_and_labels_are_smoothed_cross_entropy_up_to_its_constant():
    logits, y = doubles(6, 5), torch.randint(5, (6,))
    mine = 0.8 * Labels()(_step(logits, y)) + 0.2 * LabelSmoothing()(_step(logits))
    smoothed = F.cross_entropy(logits, y, label_smoothing=0.2)
    assert mine.item() == pytest.approx(smoothed.item() - 0.2 * math.log(5), rel=1e-9)


def test_confidence_penalty_is_the_lack_of_entropy():
    logits = doubles(6, 5)
    p = logits.softmax(1)
    entropy = torch.distributions.Categorical(p).entropy().mean().item()
    assert ConfidencePenalty()(_step(logits)).item() == pytest.approx(math.log(5) - entropy, rel=1e-9)
    assert ConfidencePenalty()(_step(torch.zeros(2, 5))).item() == pytest.approx(0, abs=1e-6)


def test_labels_take_sequences_and_other_losses_and_tell_what_does_not_fit():
    logits, y = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    expected = F.cross_entropy(logits.flatten(0, 1), y.flatten()).item()
    assert Labels()(_step(logits, y)).item() == pytest.approx(expected)
    assert Labels(loss=F.mse_loss)(_step(logits, logits + 2)).item() == pytest.approx(4)
    with pytest.raises(ValueError, match=r"\[2, 3, 5\] and \[2, 4\]"):
        Labels()(_step(logits, torch.zeros(2, 4).long()))
    with pytest.raises(ValueError, match="needs targets, got None"):
        Labels()(_step(logits))


def test_weight_penalties():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    w = model[0].weight.detach()
    assert WeightPenalty(1.0)(_step(w, model=model)).item() == pytest.approx(0.5 * (w**2).sum().item(), rel=1e-6)
    assert WeightPenalty(1.0, power=1)(_step(w, model=model)).item() == pytest.approx(w.abs().sum().item(), rel=1e-6)
    with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
        WeightPenalty(1.0, power=3)
    with pytest.raises(ValueError, match="no matrices that are trained"):
        WeightPenalty(1.0)(_step(w, model=model[1]))


def test_starting_point_pulls_back_what_is_known_and_shrinks_what_is_new():
    start = nn.Sequential(nn.Linear(3, 4))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].load_state_dict(start[0].state_dict())
    term = StartingPoint(start, 1.0, fresh=0.5)
    new = sum(p.square().sum().item() for p in model[1].parameters())
    assert term(_step(None, model=model)).item() == pytest.approx(0.25 * new, rel=1e-5)
    with torch.no_grad():
        model[0].weight += 2
    assert term(_step(None, model=model)).item() == pytest.approx(0.25 * new + 0.5 * 4 * 12, rel=1e-5)
    with pytest.raises(ValueError, match=r"none of the student's parameters are in start, which has 0.weight, 0.bias"):
        term(_step(None, model=nn.Sequential(nn.ReLU(), nn.Linear(1, 1))))
    with pytest.raises(ValueError, match=r"0.weight must be \[5, 3\] in start, got \[4, 3\]"):
        term(_step(None, model=nn.Sequential(nn.Linear(3, 5))))
