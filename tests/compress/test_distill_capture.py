"""Outputs of named submodules: of any module, whatever is raised, with nothing left on it."""

import pytest
import torch
from bigmodel_ext.compress.distill import DistillationLoss, Hidden, Labels, Logits, capture
from bigmodel_ext.train.loop import NonFiniteLossError, evaluating
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.ReLU(inplace=True))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = self.body(x)[:, None]
        mixed, _ = self.attention(tokens, key=tokens, value=tokens)
        return self.head(mixed[:, 0])


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_what_names_stand_for():
    model, x = Net(), torch.randn(6, 5)
    got = capture(model, ["", "body", "body.0", "body.0:input", "attention[1]", "head:input"], x)
    linear = model.body[0](x)
    assert torch.equal(got[""], model(x))
    assert torch.equal(got["body.0"], linear), "the in-place ReLU after it must not be seen"
    assert torch.equal(got["body"], linear.relu())
    assert torch.equal(got["body.0:input"], x)
    assert got["attention[1]"].shape == (6, 1, 1)
    assert torch.equal(model.head(got["head:input"]), got[""])
    assert got["body"].requires_grad
    assert hooks_on(model) == 0


class Wordy(nn.Module):
    """As transformers' models: keyword arguments in, a mapping with a tuple in it out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, *, ids, scale):
        hidden = self.layer(ids * scale)
        return {"logits": hidden * 2, "states": (ids, hidden)}


def test_mappings_in_and_out():
    model, ids = Wordy(), torch.randn(2, 4)
    got = capture(model, ["[logits]", "[states][1]", "layer"], {"ids": ids, "scale": 3.0})
    assert torch.equal(got["[states][1]"], got["layer"])
    assert torch.equal(got["[logits]"], 2 * got["layer"])
    assert torch.equal(capture(model, [""], {"ids": ids, "scale": 3.0})[""], got["[logits]"])
    with pytest.raises(ValueError, match=r"the model's '\[states\]' is a tuple of 2, not a tensor"):
        capture(model, ["[states]"], {"ids": ids, "scale": 3.0})
    with pytest.raises(ValueError, match=r"'\[states\]\[2\]' has no item \[2\] in a tuple of 2"):
        capture(model, ["[states][2]"], {"ids": ids, "scale": 3.0})


def test_unknown_names_are_told_with_near_ones():
    teacher = Net()
    with pytest.raises(ValueError, match=r"the teacher \(Net\) has no submodule 'boby.0' .*near: body.0, body"):
        DistillationLoss(teacher, {("", "boby.0"): Logits()})
    loss = DistillationLoss(teacher, {("blocks", "body"): Hidden(8, 8)})
    calls = []
    teacher.register_forward_hook(lambda *a: calls.append(a))
    with pytest.raises(ValueError, match=r"the student \(Net\) has no submodule 'blocks'"):
        loss(Net(), torch.randn(2, 5))
    assert not calls, "the student's names are looked up before the teacher works"


@pytest.mark.parametrize("name", ["a]b", "body[", "body:output"])
def test_malformed_names(name):
    with pytest.raises(ValueError, match="a name must be like"):
        capture(Net(), [name], torch.randn(2, 5))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


def test_a_module_must_be_called_once():
    for name, calls in (("layer", 2), ("unused", 0), ("layer:input", 2)):
        with pytest.raises(ValueError, match=f"'{name}' must be called once in a forward pass, got {calls} calls"):
            capture(Twice(), [name], torch.randn(2, 4))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_nothing_is_left_after_an_error(who):
    student, teacher = Net(), Net()
    teacher.body.eval()  # a mixed mode, to be restored exactly

    def fail(*args):
        raise KeyError("boom")

    broken = (student if who == "student" else teacher).attention.register_forward_hook(fail)
    loss = DistillationLoss(teacher, {("body.0", "body.0"): Hidden(8, 8), ("head:input", "head:input"): Hidden(8, 8)})
    modes = [m.training for m in teacher.modules()]
    with pytest.raises(KeyError, match="boom"):
        loss(student, torch.randn(2, 5))
    broken.remove()
    assert hooks_on(student) == hooks_on(teacher) == 0
    assert [m.training for m in teacher.modules()] == modes
    assert torch.is_grad_enabled()


def test_the_teacher_is_in_eval_mode_without_gradients_and_its_modes_come_back():
    teacher = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    teacher[2].eval()
    seen = []
    teacher.register_forward_hook(lambda *a: seen.append((teacher.training, torch.is_grad_enabled())))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = nn.Linear(5, 3)
    DistillationLoss(teacher, {("", ""): Logits()})(student, torch.randn(4, 5)).backward()
    assert seen == [(False, False)]
    assert [m.training for m in teacher.modules()] == [True, True, True, False]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    with evaluating(teacher):
        assert not any(m.training for m in teacher.modules())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite(bad):
    teacher = Net()
    with torch.no_grad():
        teacher.head.bias[1] = bad
    loss = DistillationLoss(teacher, {("body", "body"): Hidden(8, 8), ("", ""): Logits()})
    with pytest.raises(NonFiniteLossError, match="teacher's output '' holds 4 of 12 values that are NaN or infinite"):
        loss(Net(), torch.randn(4, 5))


def test_shapes_that_do_not_fit_are_told_with_names():
    x = torch.randn(4, 5)
    with pytest.raises(
        ValueError, match=r"Logits\(output, output\): .* must have one shape, got \[4, 3\] and \[4, 7\]"
    ):
        DistillationLoss(Net(classes=7), {("", ""): Logits()})(Net(), x)
    with pytest.raises(ValueError, match=r"Hidden\(body, body\): widths .* must be 8 and 9 .* \[4, 8\] .* \[4, 8\]"):
        DistillationLoss(Net(), {("body", "body"): Hidden(8, 9)})(Net(), x)
    with pytest.raises(ValueError, match=r"<lambda>\(body, head\): shapes \[4, 8\] and \[4, 3\] do not fit"):
        DistillationLoss(Net(), {("body", "head"): lambda s, t: (s - t).mean()})(Net(), x)


def test_compiled_models():
    """As a whole: only ""; compiled submodules: everything."""
    x = torch.randn(4, 5)
    whole = torch.compile(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), backend="eager")
    loss = DistillationLoss(whole, {("", ""): Logits()})
    student = torch.compile(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), backend="eager")
    loss(student, x).backward()
    assert student._orig_mod[0].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="the student is compiled as a whole, which hides '0': compile its submodules"):
        DistillationLoss(nn.Linear(5, 4), {("0", ""): Hidden(4, 4)})(student, x)
    parts = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    parts[0].compile(backend="eager")
    parts(x)  # compiled before any hook was there
    assert torch.equal(capture(parts, ["0"], x)["0"], parts[0](x))


def test_refused():
    with pytest.raises(ValueError, match="pairs and terms are both empty"):
        DistillationLoss(Net(), {})
    with pytest.raises(ValueError, match="pairs need a teacher that is a torch module, got NoneType"):
        DistillationLoss(None, {("", ""): Logits()})
    with pytest.raises(TypeError, match=r"must be named by .* got 'body'"):
        DistillationLoss(Net(), {"body": Logits()})
    with pytest.raises(TypeError, match="must be a loss that can be called, got <class"):
        DistillationLoss(Net(), {("", ""): Logits})
    with pytest.raises(TypeError, match=r"labels must be a loss that can be called, got 0.1"):
        DistillationLoss(None, terms={"labels": 0.1})
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="weight must be finite and at least 0"):
            Labels(weight)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        Logits(0)
