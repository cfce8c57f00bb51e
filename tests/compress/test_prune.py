import pytest
import torch
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner, cubic_sparsity
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, fit
from torch import nn


def zero_share(layers):
    """The share of all these layers' weights that is zero."""
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    return (weights == 0).float().mean().item()


def test_schedule_is_cubic_between_its_ends():
    assert cubic_sparsity(0, 0, 100, 0.8) == 0.0
    assert cubic_sparsity(50, 0, 100, 0.8) == pytest.approx(0.8 - 0.8 * 0.5**3)
    assert cubic_sparsity(25, 0, 100, 0.9, initial=0.3) == pytest.approx(0.9 - 0.6 * 0.75**3)
    assert cubic_sparsity(100, 0, 100, 0.8) == cubic_sparsity(1000, 0, 100, 0.8) == 0.8
    assert cubic_sparsity(-5, 0, 100, 0.8, initial=0.2) == pytest.approx(0.2)
    values = [cubic_sparsity(step, 10, 90, 0.7) for step in range(100)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 10, 0.5), "end must be above begin, got begin 10 and end 10"),
        ((0, 0, 10, 1.0), r"final must be in \[0, 1\), got 1.0"),
        ((0, 0, 10, 0.5, -0.1), r"initial must be in \[0, 1\), got -0.1"),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        cubic_sparsity(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "2:4"}, "granularity '2:4' has no steps between"),
        ({"ramp": 0.0}, r"ramp must be in \(0, 1\], got 0.0"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_gradual_pruner_refuses(changes, message):
    arguments = {"granularity": "1x4", "ramp": 1.0, "every": 1, **changes}
    pruner = MaskPruner(nn.Sequential(nn.Linear(4, 4)), granularity=arguments.pop("granularity"))
    with pytest.raises(ValueError, match=message):
        GradualPruner(pruner, 10, **arguments)


def _zero_units(weight, granularity):
    if granularity == "weight":
        return weight == 0
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % 4))
    return (padded.view(weight.shape[0], -1, 4) == 0).all(-1)


@pytest.mark.parametrize("granularity", ["weight", "1x4"])
@pytest.mark.parametrize("inputs", [16, 19])
def test_masks_hold_through_training_and_end_exact(granularity, inputs):
    model = nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 3))
    examples = Examples(torch.randn(64, inputs), torch.randint(3, (64,)))
    config = TrainConfig(epochs=6, batch_size=8, learning_rate=1e-2)
    layers = {"first": model[0], "last": model[2]}
    masked = MaskPruner(model, granularity=granularity, pruning_ratio=0.6)
    pruner = GradualPruner(masked, config.steps(64), every=3)
    shares, before = [], {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}

    def step(done):
        pruner(done)
        shares.append(zero_share(layers.values()))
        for name, layer in layers.items():
            zeros = layer.weight == 0
            assert bool((zeros | ~before[name]).all()), f"a pruned weight of {name} came back at step {done}"
            before[name] = zeros.clone()

    fit(model, examples, CrossEntropy(), config, seed=0, on_step=step)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    for layer in layers.values():
        zero = _zero_units(layer.weight, granularity)
        assert int(zero.sum()) == round(0.6 * zero.numel())


def test_the_smallest_go_first():
    layer = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1, 1, 1, 3, 0, 0, 0], [0.1, 0.1, 0.1, 0.1, 2, 2, 2, 2]]))
    pruner = MaskPruner(nn.Sequential(layer), granularity="1x4")
    GradualPruner(pruner, 1, ramp=1.0)(1)
    # 1x4 blocks by their sum of squares: 4, 9, 0.04 and 16
    assert torch.equal(layer.weight != 0, torch.tensor([[0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]).bool())
