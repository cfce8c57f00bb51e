import math

import pytest
import torch
from bigmodel_ext.train.loop import (
    CrossEntropy,
    Examples,
    NonFiniteLossError,
    TrainConfig,
    accuracy,
    cosine,
    fit,
    outputs,
)
from torch import nn

CONFIG = TrainConfig(epochs=8, batch_size=16, learning_rate=1e-2)


def _examples():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    return Examples(x, (x.sum(1) > 0).long())


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def test_it_learns_and_tells():
    told, model = [], _model()
    means = fit(model, _examples(), CrossEntropy(0.0), CONFIG, seed=0, on_epoch=lambda *a: told.append(a))
    assert accuracy(model, _examples()) >= 0.9
    assert means[-1] < 0.5 * means[0]
    assert told == list(zip(range(1, 9), means, strict=True))
    assert not model.training


def test_a_seed_fixes_everything():
    runs = []
    for seed in (3, 3, 4):
        model = _model()
        fit(model, _examples(), CrossEntropy(), CONFIG, seed=seed)
        runs.append(model.state_dict())
        torch.rand(7)  # the global generator plays no part
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["0.weight"], runs[2]["0.weight"])


def test_steps_are_counted_and_incomplete_batches_left_out():
    steps, sizes = [], []
    loss = CrossEntropy()

    def counting(model, x, y):
        sizes.append(len(x))
        return loss(model, x, y)

    fit(_model(), _examples(), counting, CONFIG, seed=0, on_step=steps.append)
    assert steps == list(range(1, CONFIG.steps(100) + 1))
    assert sizes == [16] * 48


def test_fewer_examples_than_a_batch():
    few = Examples(torch.randn(3, 4), torch.tensor([0, 1, 0]))
    assert len(fit(_model(), few, CrossEntropy(), CONFIG, seed=0)) == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_harm(bad):
    model, calls = _model(), []

    def loss(model, x, y):
        calls.append(None)
        value = CrossEntropy()(model, x, y)
        return value * bad if len(calls) == 10 else value

    seen = []
    with pytest.raises(NonFiniteLossError, match=rf"became {bad} in stage 'the stage', epoch 2"):
        fit(
            model,
            _examples(),
            loss,
            CONFIG,
            seed=0,
            stage="the stage",
            on_step=lambda step: seen.append([p.detach().clone() for p in model.parameters()]),
        )
    assert len(seen) == 9
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), seen[-1], strict=True))


def test_smoothed_cross_entropy_is_the_formula():
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1])
    model = _model()
    target = 0.8 * nn.functional.one_hot(y, 2) + 0.2 / 2
    expected = -(target * model(x).log_softmax(1)).sum(1).mean()
    assert CrossEntropy(0.2)(model, x, y).item() == pytest.approx(expected.item(), rel=1e-6)


def test_cosine_with_warmup():
    values = [cosine(step, 100, 0.1) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[50] == pytest.approx(0.5)
    assert values[99] < 0.001
    assert max(range(100), key=values.__getitem__) == 9
    assert cosine(0, 10, 0.0) == 1.0


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_config_refuses(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TrainConfig(**{"epochs": 1, "batch_size": 1, "learning_rate": 0.1, name: 0})


def test_outputs_come_in_batches_and_leave_the_mode():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    x = torch.randn(10, 4)
    result = outputs(model, x, batch=3)
    assert torch.allclose(result, model[0](x))
    assert model.training
