import math
from dataclasses import replace

import pytest
import torch
from bigmodel_ext.compress.distill import Distillation, distillation_loss
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import CrossEntropy, Examples, accuracy, fit
from bigmodel_ext.train.tasks import text
from torch import nn


class Fixed(nn.Module):
    """The same logits at every position."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


@pytest.fixture(scope="module")
def data():
    return text.load(0)


def test_inputs_are_followed_by_their_targets(data):
    for part in (data.train, data.validation, data.test):
        assert part.inputs.shape == part.targets.shape == (len(part), text.CONTEXT)
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        assert 0 <= int(part.inputs.min()) <= int(part.targets.max()) < text.VOCABULARY
    assert len(data.train) > 5000
    assert "".join(map(chr, data.train.inputs[:2000].flatten())).count("self") > 100


def test_held_out_files_are_disjoint_complete_and_follow_the_seed():
    names = [path.name for path in text.sources()]
    parts = text.split(names, 3)
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(len(names)))
    assert min(map(len, parts[1:])) >= 10
    assert parts == text.split(names, 3) != text.split(names, 4)
    assert [len(part) for part in text.split(names[:3], 0)] == [1, 1, 1]


def test_another_version_mostly_agrees_on_what_is_held_out():
    names = [path.name for path in text.sources()]
    older = names[::-1][5:]  # fewer modules, in another order
    held = [{names[i] for i in part} for part in text.split(names, 0)]
    again = [{older[i] for i in part} for part in text.split(older, 0)]
    assert len(held[2] - again[2]) <= 5


def test_windows_are_the_text():
    source = bytes(range(1, 101)) * 4
    cut = text.windows([source, b"too short", source])
    assert cut.shape == (6, text.CONTEXT + 1)
    assert torch.equal(cut[:3], cut[3:])
    assert bytes(cut[1].tolist()) == source[128:257]
    assert text.encode("aé\n".encode()).tolist() == [97, 0, 0, 10]


def test_a_python_without_sources_is_refused(tmp_path):
    (tmp_path / "one.py").write_text("x = 1\n" * 100)
    (tmp_path / "_sysconfigdata_x.py").write_text("x = 1\n" * 100)
    with pytest.raises(ValueError, match=r"needs the standard library's source: .* has 1 modules"):
        text.sources(tmp_path)


def test_bits_per_character_is_the_formula():
    examples = Examples(torch.zeros(3, 5, dtype=torch.long), torch.arange(15).view(3, 5) % 4)
    assert text.bits_per_character(Fixed(torch.zeros(128)), examples) == pytest.approx(7.0)
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    expected = (4 * 1 + 4 * 2 + 4 * 3 + 3 * 3) / 15  # each target's share of the 15, times its bits
    assert text.bits_per_character(Fixed(p.log()), examples, batch=2) == pytest.approx(expected, rel=1e-6)
    metric = tasks.get("text").metric
    assert metric(Fixed(p.log()), examples) == pytest.approx(-expected, rel=1e-6)
    assert metric.show(-1.23456) == "1.235"
    assert accuracy(Fixed(p), examples) == pytest.approx(4 / 15)


def test_losses_average_over_positions():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 7).unbind()
    targets = torch.randint(7, (3, 5))
    flat = distillation_loss(student.view(15, 7), teacher.view(15, 7), 2.0)
    assert distillation_loss(student, teacher, 2.0) == pytest.approx(float(flat), rel=1e-6)
    hard = nn.functional.cross_entropy(student.view(15, 7), targets.view(15))
    model = nn.Identity()
    assert CrossEntropy(0.0)(model, student, targets) == pytest.approx(float(hard), rel=1e-6)
    both = Distillation(nn.Identity(), 2.0, 0.5)(model, student, targets)
    assert float(both) == pytest.approx(0.5 * float(hard), rel=1e-5)


def test_a_model_learns_what_python_looks_like(data):
    """It does better than knowing how frequent each character is, within two seconds."""
    task = tasks.get("text")
    torch.manual_seed(0)
    model = task.build(task.quick.students[0])
    config = replace(task.quick.train_student, epochs=4)
    fit(model, data.train, CrossEntropy(0.0), config, seed=0)
    shares = data.test.targets.flatten().bincount(minlength=128).double() / data.test.targets.numel()
    frequency = -float((shares * shares.clamp_min(1e-12).log2()).sum())
    few = Examples(data.test.inputs[:128], data.test.targets[:128])
    assert text.bits_per_character(model, few) < 0.95 * frequency < 0.95 * math.log2(128)
