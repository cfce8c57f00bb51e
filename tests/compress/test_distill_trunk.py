"""Several tasks on one trunk."""

import math

import pytest
import torch
from bigmodel_ext.compress.distill import DistillationLoss, Hidden, Labels, Logits, SharedTrunk, TrunkLoss, together
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit
from torch import nn
from torch.nn import functional as F


def trunk_model(seed=0, width=16):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(6, width), nn.ReLU())
    return SharedTrunk(trunk, {"sign": nn.Linear(width, 2), "quadrant": nn.Linear(width, 4)})


def labels():
    return DistillationLoss(None, terms={"labels": Labels()})


def single(classes, seed=9, width=24):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))


def _data(n=256, seed=0):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, {"sign": (x.sum(1) > 0).long(), "quadrant": (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()}


def test_heads_share_one_pass_and_views_share_weights():
    model, x = trunk_model(), torch.randn(5, 6)
    calls = []
    model.trunk.register_forward_hook(lambda *a: calls.append(1))
    out = model(x)
    assert list(out) == ["sign", "quadrant"]
    assert len(calls) == 1
    assert list(model(x, tasks=["quadrant"])) == ["quadrant"]
    assert torch.equal(model.only("sign")(x), out["sign"])
    assert model.only("sign")[0] is model.trunk
    with pytest.raises(ValueError, match="task must be one of sign, quadrant, got 'parity'"):
        model(x, tasks=["parity"])
    with pytest.raises(ValueError, match="at least one task"):
        SharedTrunk(nn.Identity(), {})
    with pytest.raises(ValueError, match=r"must not be empty or hold a dot, got 'a.b'"):
        SharedTrunk(nn.Identity(), {"a.b": nn.Identity()})


def test_each_head_has_its_own_teacher_loss_and_weight():
    model, (x, y) = trunk_model(), _data(12)
    teachers = {"sign": single(2), "quadrant": single(4)}
    hidden = Hidden(16, 24, weight=0.5)
    losses = {
        "sign": DistillationLoss(teachers["sign"], {("", ""): Logits(2.0), ("trunk.1", "1"): hidden}),
        "quadrant": DistillationLoss(teachers["quadrant"], {("", ""): Logits(4.0)}, {"labels": Labels(0.1)}),
    }
    loss = TrunkLoss(losses, {"sign": 3.0})
    calls = []
    model.trunk.register_forward_hook(lambda *a: calls.append(1))
    total = loss(model, x, y)
    assert len(calls) == 1, "the same inputs: one pass of the trunk"
    alone = {}
    for task in losses:
        student = model.only(task)
        pairs = {("", ""): Logits(2.0), ("0.1", "1"): hidden} if task == "sign" else {("", ""): Logits(4.0)}
        terms = {} if task == "sign" else {"labels": Labels(0.1)}
        alone[task] = DistillationLoss(teachers[task], pairs, terms)(student, x, y[task]).item()
    assert total.item() == pytest.approx(3 * alone["sign"] + alone["quadrant"], rel=1e-5)
    assert set(loss.parts) == {
        "sign/Logits(output, output)", "sign/Hidden(trunk.1, 1)", "sign/weight",
        "quadrant/Logits(output, output)", "quadrant/labels", "quadrant/weight",
    }  # fmt: skip
    columns = torch.stack([y["sign"], y["quadrant"]], 1)
    assert loss(model, x, columns).item() == pytest.approx(total.item(), rel=1e-6)


def test_tasks_from_loaders_of_their_own():
    model, (x, y) = trunk_model(), _data(8)
    loss = TrunkLoss({"sign": labels(), "quadrant": labels()})
    other = torch.randn(3, 6)
    total = loss.on(model, {"sign": (x, y["sign"]), "quadrant": (other, y["quadrant"][:3])})
    out = F.cross_entropy(model(x)["sign"], y["sign"]) + F.cross_entropy(model(other)["quadrant"], y["quadrant"][:3])
    assert total.item() == pytest.approx(out.item(), rel=1e-5)
    model.zero_grad()
    loss.on(model, {"sign": (x, y["sign"])}).backward()
    assert model.heads["quadrant"].weight.grad is None
    assert set(loss.parts) == {"sign/labels", "sign/weight", "quadrant/weight"}


def test_uncertainty_finds_the_weight_that_is_best_for_each_loss():
    """d/ds exp(-s) L + s/2 = 0 where exp(-s) = 1 / (2 L)."""
    constants = {"small": 0.05, "large": 4.0}
    losses = {
        task: DistillationLoss(None, terms={"c": lambda step, c=c: torch.tensor(c)}) for task, c in constants.items()
    }
    loss = TrunkLoss(losses, "uncertainty")
    model = SharedTrunk(nn.Identity(), {task: nn.Identity() for task in losses})
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    assert loss.weights == {"small": 1.0, "large": 1.0}
    for _ in range(200):
        optimizer.zero_grad()
        total = loss(model, torch.zeros(1, 2))
        total.backward()
        optimizer.step()
    for task, constant in constants.items():
        assert loss.weights[task] == pytest.approx(1 / (2 * constant), rel=0.02)
    expected = sum(c / (2 * c) + math.log(2 * c) / 2 for c in constants.values())
    assert total.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("weights", [None, "uncertainty"])
def test_two_tasks_are_learned_with_fewer_parameters(weights):
    x, y = _data(512)
    test_x, test_y = _data(1000, seed=1)
    teachers = {task: single(classes, width=64) for task, classes in (("sign", 2), ("quadrant", 4))}
    for task, teacher in teachers.items():
        fit(teacher, Examples(x, y[task]), CrossEntropy(0.0), TrainConfig(10, 32, 1e-2), seed=0)
    losses = {
        task: DistillationLoss(teacher, {("", ""): Logits(2.0)}, {"labels": Labels(0.2)})
        for task, teacher in teachers.items()
    }
    model, loss = trunk_model(width=24), TrunkLoss(losses, weights)
    before = loss.weights
    fit(model, Examples(x, torch.stack(list(y.values()), 1)), loss, TrainConfig(15, 32, 1e-2), seed=0)
    for task in y:
        assert accuracy(model.only(task), Examples(test_x, test_y[task])) > 0.93
    assert (loss.weights == before) is (weights is None), "fit trains the weights that are learned"
    students = sum(p.numel() for classes in (2, 4) for p in single(classes).parameters())
    assert sum(p.numel() for p in model.parameters()) < 0.7 * students


def test_refused():
    model, (x, y) = trunk_model(), _data(4)
    loss = TrunkLoss({"sign": labels(), "quadrant": labels()})
    with pytest.raises(ValueError, match="weights must be for sign, got 'quadrant'"):
        TrunkLoss({"sign": labels()}, {"quadrant": 1.0})
    with pytest.raises(ValueError, match="weight must be finite and at least 0, got -1"):
        TrunkLoss({"sign": labels()}, {"sign": -1.0})
    with pytest.raises(ValueError, match="a mapping or 'uncertainty', got 'auto'"):
        TrunkLoss({"sign": labels()}, "auto")
    with pytest.raises(ValueError, match="losses must name at least one task"):
        TrunkLoss({})
    with pytest.raises(ValueError, match=r"targets must be \[B, 2\], a column for each of sign, quadrant, got \[4\]"):
        loss(model, x, y["sign"])
    with pytest.raises(ValueError, match="targets must have each of sign, quadrant, got sign"):
        loss(model, x, {"sign": y["sign"]})
    with pytest.raises(ValueError, match="batches must be for sign, quadrant, got parity"):
        loss.on(model, {"parity": (x, y["sign"])})
    with pytest.raises(ValueError, match="must be a SharedTrunk, got Linear"):
        loss(nn.Linear(6, 2), x, y)
    with pytest.raises(ValueError, match=r"the student .SharedTrunk. has no submodule 'heads.parity'"):
        TrunkLoss({"parity": labels()})(model, x, None)


def test_loaders_run_together_until_the_longest_ends():
    loaders = {"a": [(1, 1), (2, 2), (3, 3)], "b": [(7, 7), (8, 8)]}
    steps = [(step["a"][0], step["b"][0]) for step in together(loaders)]
    assert steps == [(1, 7), (2, 8), (3, 7)]
    with pytest.raises(ValueError, match="the loader of 'b' gives no batches"):
        list(together({"a": [(1, 1)], "b": []}))
    with pytest.raises(ValueError, match="the loader of 'b' gives batches only once"):
        list(together({"a": [(1, 1), (2, 2)], "b": iter([(1, 1)])}))
    with pytest.raises(ValueError, match="loaders must name at least one"):
        list(together({}))
