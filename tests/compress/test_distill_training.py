"""The loss in training: what it is made of, what it trains, and that it teaches."""

import copy

import pytest
import torch
from bigmodel_ext.compress.distill import (
    ConfidencePenalty,
    Distillation,
    DistillationLoss,
    Hidden,
    Labels,
    LabelSmoothing,
    Logits,
    Similarity,
)
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit, outputs
from torch import nn
from torch.nn import functional as F


def mlp(width, classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))


def test_parts_are_named_and_sum_to_the_total():
    teacher, student, x, y = mlp(16), mlp(4, seed=1), torch.randn(9, 6), torch.randint(4, (9,))
    pairs = {
        ("", ""): [Logits(2.0, weight=0.7), Similarity(3.0), Similarity(1.0)],
        ("1", "1"): Hidden(4, 16, weight=0.1),
    }
    terms = {"labels": Labels(0.3), "confident": ConfidencePenalty(0.05), "mine": lambda step: step.output.mean() ** 2}
    loss = DistillationLoss(teacher, pairs, terms)
    total = loss(student, x, y)
    assert list(loss.parts) == [
        "Logits(output, output)", "Similarity(output, output)", "Similarity(output, output) #2", "Hidden(1, 1)",
        "labels", "confident", "mine",
    ]  # fmt: skip
    assert sum(loss.parts.values()) == pytest.approx(total.item(), rel=1e-5)
    assert loss.parts["labels"] == pytest.approx(0.3 * F.cross_entropy(student(x), y).item(), rel=1e-5)
    assert loss.parts["mine"] == pytest.approx(student(x).mean().item() ** 2, rel=1e-4)
    three, one = loss.parts["Similarity(output, output)"], loss.parts["Similarity(output, output) #2"]
    assert three == pytest.approx(3 * one)
    assert not any(part.requires_grad for part in loss._parts.values())


def test_without_a_teacher_it_is_named_penalties():
    student, x, y = mlp(4), torch.randn(9, 6), torch.randint(4, (9,))
    loss = DistillationLoss(None, terms={"labels": Labels(0.9), "smoothing": LabelSmoothing(0.1)})
    expected = F.cross_entropy(student(x), y, label_smoothing=0.1).item() - 0.1 * torch.tensor(4.0).log().item()
    assert loss(student, x, y).item() == pytest.approx(expected, rel=1e-5)
    assert set(loss.parts) == {"labels", "smoothing"}


def test_the_old_loss_is_a_case_of_the_general_one():
    class Headed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body, self.head = nn.Linear(6, width), nn.Linear(width, 4)

        def forward(self, x):
            return self.head(self.body(x).tanh())

    loss = Distillation(Headed(8), 2.0, 0.7, feature_weight=2.0)
    loss(Headed(5), torch.randn(3, 6), torch.randint(4, (3,)))
    assert list(loss.parts) == ["Logits(output, output)", "Similarity(head:input, head:input)", "labels"]


def test_projections_are_trained_by_fit_and_are_no_part_of_student_or_teacher():
    teacher, student = mlp(16), mlp(4, seed=1)
    hidden = Hidden(4, 16)
    loss = DistillationLoss(teacher, {("1", "1"): hidden})
    x = torch.randn(64, 6)
    before, fixed = hidden.projection.weight.detach().clone(), copy.deepcopy(teacher.state_dict())
    keys = set(student.state_dict())
    config = TrainConfig(epochs=20, batch_size=16, learning_rate=1e-2)
    means = fit(student, Examples(x, torch.zeros(64).long()), loss, config, seed=0)
    assert not torch.equal(hidden.projection.weight, before)
    assert means[-1] < 0.5 * means[0]
    assert [name for name, _ in loss.named_parameters()] == ["own.0.projection.weight"]
    assert list(loss.state_dict()) == ["own.0.projection.weight"]
    assert set(student.state_dict()) == keys
    assert all(torch.equal(fixed[name], value) for name, value in teacher.state_dict().items())


def test_an_optimizer_of_the_students_alone_leaves_the_projection():
    """In a loop of one's own: what is not given to the optimizer is not trained."""
    student, hidden = mlp(4), Hidden(4, 16)
    loss = DistillationLoss(mlp(16, seed=1), {("1", "1"): hidden})
    optimizer = torch.optim.SGD([*student.parameters(), *loss.parameters()], lr=0.1)
    before = hidden.projection.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss(student, torch.randn(8, 6)).backward()
        optimizer.step()
    assert not torch.equal(before, hidden.projection.weight)


def _world(seed):
    """A rule to learn, few labels and many unlabelled points."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 6, generator=generator) * 1.5
    y = torch.randint(4, (1400,), generator=generator)
    x = centres[y] + torch.randn(1400, 6, generator=generator)
    return Examples(x[:400], y[:400]), Examples(x[400:], y[400:])


def test_a_teacher_helps():
    """Answers of a teacher that saw 400 labels, on 24 examples; the same student, examples, steps and seeds without."""
    train, test = _world(0)
    teacher = mlp(64)
    fit(teacher, train, CrossEntropy(0.0), TrainConfig(20, 32, 1e-2), seed=0)
    few = Examples(train.inputs[:24], train.targets[:24])
    gains = []
    for seed in range(3):
        results = []
        for loss in (CrossEntropy(0.0), DistillationLoss(teacher, {("", ""): Logits(3.0)})):
            student = mlp(8, seed=seed)
            fit(student, few, loss, TrainConfig(60, 12, 1e-2), seed=seed)
            results.append(accuracy(student, test))
        gains.append(results[1] - results[0])
    assert sum(gains) / 3 > 0.01, gains


def test_imitating_hidden_states_brings_relations_over():
    """A student taught by similarity alone orders pairs of examples as its teacher does."""
    teacher, student = mlp(32), mlp(8, seed=3)
    x = torch.randn(256, 6)

    def likeness(model):
        rows = F.normalize(outputs(model, x), dim=1)
        return (rows @ rows.T).flatten()

    def agreement():
        return torch.corrcoef(torch.stack([likeness(student), likeness(teacher)]))[0, 1].item()

    before = agreement()
    loss = DistillationLoss(teacher, {("", ""): Similarity(100.0)})
    fit(student, Examples(x, torch.zeros(256).long()), loss, TrainConfig(40, 32, 1e-2), seed=0)
    assert agreement() > before + 0.5
