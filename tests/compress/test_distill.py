import math

import pytest
import torch
from bigmodel_ext.compress.distill import Distillation, distillation_loss, similarity_loss
from torch import nn


def _softmax(row, temperature):
    exps = [math.exp(value / temperature) for value in row]
    return [value / sum(exps) for value in exps]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_loss_is_the_formula(temperature):
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = _softmax(t_row, temperature), _softmax(s_row, temperature)
        expected += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) / 5
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * expected, rel=1e-10
    )


def test_loss_is_zero_for_equal_logits_up_to_a_shift():
    logits = torch.randn(3, 10)
    assert distillation_loss(logits + 5, logits, 2.0).item() == pytest.approx(0.0, abs=1e-5)


def test_temperature_squared_keeps_the_gradient():
    """At high temperatures the gradient tends to (s - t) / classes / batch (for logits of mean 0), whatever T is."""
    teacher = torch.randn(4, 6, dtype=torch.float64)
    teacher -= teacher.mean(1, keepdim=True)
    student = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    limit = -teacher / 6 / 4
    for temperature in (1e3, 1e4):
        (grad,) = torch.autograd.grad(distillation_loss(student, teacher, temperature), student)
        assert (grad - limit).abs().max() < 10 / temperature * limit.abs().max()


def test_loss_refuses():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match=r"one shape, got \[1, 2\] and \[1, 3\]"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 3), 1.0)


def test_similarity_ignores_width_rotation_and_scale():
    features = torch.randn(8, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    wider = torch.cat([features @ rotation, torch.zeros(8, 3, dtype=torch.float64)], 1) * 7
    assert similarity_loss(wider, features).item() == pytest.approx(0.0, abs=1e-20)
    other = torch.randn(8, 6, dtype=torch.float64)
    norm = [(f @ f.T) / (f @ f.T).norm(dim=1, keepdim=True) for f in (features, other)]
    assert similarity_loss(features, other).item() == pytest.approx(((norm[0] - norm[1]) ** 2).sum().item() / 64)


class _Headed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(5, width), nn.Linear(width, 3)

    def features(self, x):
        return self.body(x).tanh()

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("feature_weight", [0.0, 2.0])
def test_terms_are_weighted_and_only_the_student_learns(feature_weight):
    teacher, student = _Headed(8), _Headed(4)
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    loss = Distillation(teacher, 2.0, soft_weight=0.7, feature_weight=feature_weight)(student, x, y)
    expected = 0.7 * distillation_loss(student(x), teacher(x), 2.0) + 0.3 * nn.functional.cross_entropy(student(x), y)
    expected = expected + feature_weight * similarity_loss(student.features(x), teacher.features(x))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
