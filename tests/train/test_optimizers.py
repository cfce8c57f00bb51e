import pytest
import torch
from bigmodel_ext.train import optimizers
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit
from bigmodel_ext.train.settings import OPTIMIZERS
from torch import nn

# Each as its paper has it, one tensor at a time, with state s: what a step makes of weight w and gradient g.


def _sgd(w, g, s, t, lr, wd, momentum=0.9, nesterov=False):
    g = g + wd * w
    s["v"] = g if t == 1 else momentum * s["v"] + g
    return w - lr * (g + momentum * s["v"] if nesterov else s["v"])


def _adam(w, g, s, t, lr, wd):
    g = g + wd * w
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    return w - lr * (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


def _adamw(w, g, s, t, lr, wd):
    return _adam(w * (1 - lr * wd), g, s, t, lr, 0.0)


CASES = [
    ({"optimizer": "sgd"}, _sgd),
    ({"optimizer": "sgd", "momentum": 0.5}, lambda *a: _sgd(*a, momentum=0.5)),
    ({"optimizer": "sgd", "nesterov": True}, lambda *a: _sgd(*a, nesterov=True)),
    ({"optimizer": "adam"}, _adam),
    ({"optimizer": "adamw"}, _adamw),
]


def _config(**changes):
    return TrainConfig(**{"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "weight_decay": 0.02, **changes})


@pytest.mark.parametrize(("changes", "formula"), CASES)
def test_steps_are_the_formula(changes, formula):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = optimizers.make(model, _config(**changes))
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    states = {name: {} for name in expected}
    for t in range(1, 6):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        for name, p in model.named_parameters():
            decay = 0.02 if name == "weight" else 0.0  # biases do not decay
            expected[name] = formula(expected[name], p.grad.double(), states[name], t, 0.1, decay)
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p.double(), expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fused_form_is_used_where_it_runs(name):
    model = nn.Linear(5, 3)
    assert optimizers.make(model, _config(optimizer=name)).defaults["fused"] is True
    model.to("meta")
    assert optimizers.make(model, _config(optimizer=name)).defaults["fused"] is False


@pytest.mark.parametrize("changes", [changes for changes, _ in CASES])
def test_mini_batches_train_a_model(changes):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=generator)
    examples = Examples(x, (x[:, 0] * x[:, 1] > 0).long())  # no linear model can
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    rate = 0.2 if changes["optimizer"] == "sgd" else 2e-2
    before = accuracy(model, examples)
    config = TrainConfig(**{**changes, "epochs": 15, "batch_size": 16, "learning_rate": rate, "weight_decay": 0.0})
    fit(model, examples, CrossEntropy(0.0), config, seed=0)
    assert before < 0.65
    assert accuracy(model, examples) > 0.88


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"optimizer": "lion"}, "optimizer must be one of sgd, adam, adamw, got 'lion'"),
     ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
     ({"nesterov": True}, "nesterov needs sgd with momentum, got 'adamw' with 0.9"),
     ({"optimizer": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov needs sgd with momentum, got 'sgd' with 0.0")],
)  # fmt: skip
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def test_a_model_that_trains_nothing_is_refused():
    model = nn.Linear(4, 2).requires_grad_(False)
    examples = Examples(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fit(model, examples, CrossEntropy(), _config(), seed=0)
