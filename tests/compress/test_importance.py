"""The scores that pruning ranks by, each against its formula spelt out."""

import pytest
import torch
from bigmodel_ext.compress.calibrate import layers_of
from bigmodel_ext.compress.prune import IMPORTANCES, scores
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 5, bias=False)
    )


BATCHES = [torch.randn(n, 4, 6, 6, generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
TARGETS = [torch.tensor([0, 1, 4]), torch.tensor([2, 2])]


def forward(model):
    for x in BATCHES:
        model(x)


def backward(model):
    for x, target in zip(BATCHES, TARGETS, strict=True):
        F.cross_entropy(model(x), target).backward()


def of(model, importance, loop=None):
    return scores(model, layers_of(model), importance, loop)


def test_magnitude_is_the_square(model):
    found = of(model, "magnitude")
    for fqn in ("0", "3"):
        torch.testing.assert_close(found[fqn], model.get_submodule(fqn).weight.detach() ** 2)


@pytest.mark.parametrize("importance", ["activation", "apoz"])
def test_output_based_scores_sum_to_the_outputs_figure(model, importance):
    found = of(model, importance, forward)
    of_outputs = (lambda y: y.abs()) if importance == "activation" else (lambda y: (y > 0).float())
    with torch.no_grad():
        x = torch.cat(BATCHES)
        channels = of_outputs(model[0](x)).mean((0, 2, 3))
        neurons = of_outputs(model(x)).mean(0)
    torch.testing.assert_close(found["0"].sum((1, 2, 3)), channels)
    torch.testing.assert_close(found["3"].sum(1), neurons)
    assert torch.equal(found["0"].amin((1, 2, 3)), found["0"].amax((1, 2, 3))), "spread evenly"


def test_apoz_finds_the_neuron_that_never_fires():
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.bias[2] = -100.0
        layer.weight[3] = layer.bias[3] = 0.0
    found = of(nn.Sequential(layer, nn.ReLU()), "apoz", lambda m: m(torch.randn(50, 3)))
    assert (found["0"].sum(1) > 0).tolist() == [True, True, False, False]


def test_wanda_weighs_with_the_inputs_of_each_weight(model):
    found = of(model, "wanda", forward)
    with torch.no_grad():
        x = torch.cat(BATCHES)
        patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)  # [M, 4 * 9]
        rms = patches.double().square().mean(0).sqrt().view(2, 1, 2, 3, 3)  # group 0 sees channels 0 and 1
        conv = model[0].weight.double().abs().view(2, 3, 2, 3, 3) * rms
        hidden = model[:3](x).double().square().mean(0).sqrt()
    torch.testing.assert_close(found["0"].double(), conv.view(6, 2, 3, 3))
    torch.testing.assert_close(found["3"].double(), model[3].weight.detach().double().abs() * hidden)


def test_wanda_sees_tokens_as_rows():
    layer, x = nn.Linear(5, 3), torch.randn(2, 7, 5)
    found = of(nn.Sequential(layer), "wanda", lambda m: m(x))
    torch.testing.assert_close(found["0"], layer.weight.detach().abs() * x.flatten(0, 1).square().mean(0).sqrt())


@pytest.mark.parametrize("clears", [False, True])
def test_taylor_is_weight_times_gradient_per_pass(model, clears):
    expected = torch.zeros(5, 54)
    for x, target in zip(BATCHES, TARGETS, strict=True):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), target), [model[3].weight])
        expected += (model[3].weight.detach() * gradient).abs() / 2

    def loop(model):
        for x, target in zip(BATCHES, TARGETS, strict=True):
            if clears:
                model.zero_grad()
            F.cross_entropy(model(x), target).backward()

    torch.testing.assert_close(of(model, "taylor", loop)["3"], expected)


def test_taylor_finds_the_weight_that_matters():
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.randn(64, 4) * torch.tensor([1.0, 0.1, 5.0, 0.0])
    found = of(nn.Sequential(layer), "taylor", lambda m: m(x).square().mean().backward())["0"]
    assert found.argsort().tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_model_stays_as_it_was(model, importance):
    model.train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = of(model, importance, backward if importance == "taylor" else forward)
    assert model.training
    assert importance != "taylor" or not model[1].training
    assert not model[3].weight.requires_grad
    assert model[3].weight.grad is None
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for fqn, score in found.items():
        assert score.shape == model.get_submodule(fqn).weight.shape
        assert score.dtype == torch.float32
        assert score.min() >= 0
        score += 1.0  # no inference tensor, no view of a weight
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class TestRefuses:
    def test_unknown_importance(self, model):
        with pytest.raises(
            ValueError, match="importance must be one of magnitude, activation, apoz, taylor, wanda, got"
        ):
            of(model, "l1")

    def test_no_layers(self, model):
        with pytest.raises(ValueError, match="layers must name at least one layer"):
            scores(model, {}, "magnitude")

    def test_other_layers(self, model):
        with pytest.raises(TypeError, match=r"1 must be an nn.Linear or nn.Conv2d with a weight, got ReLU"):
            scores(model, {"1": model[1]}, "magnitude")

    @pytest.mark.parametrize("importance", ["activation", "apoz", "taylor", "wanda"])
    def test_no_data(self, model, importance):
        with pytest.raises(ValueError, match=f"importance '{importance}' needs a forward_loop"):
            of(model, importance)
        with pytest.raises(ValueError, match=r"reached 0, 3"):
            of(model, importance, lambda m: None)
        if importance != "taylor":
            with pytest.raises(ValueError, match="forward_loop gave 0 0 rows"):
                of(model, importance, lambda m: m(torch.empty(0, 4, 6, 6)))

    @pytest.mark.parametrize("importance", ["activation", "apoz", "taylor", "wanda"])
    def test_nan_data(self, model, importance):
        x = torch.full((2, 4, 6, 6), float("nan"))
        with pytest.raises(ValueError, match=rf"of \d+ {importance} scores of 0 are NaN or infinite"):
            of(model, importance, lambda m: m(x).sum().backward() if importance == "taylor" else m(x))

    def test_nan_weights(self, model):
        with torch.no_grad():
            model[3].weight[1, 2] = float("nan")
        with pytest.raises(ValueError, match="1 of 270 magnitude scores of 3 are NaN or infinite"):
            of(model, "magnitude")
