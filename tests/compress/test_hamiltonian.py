"""Hamiltonian quantization of models: energies, errors against plain codes, what is refused."""

import copy
import itertools

import pytest
import torch
from bigmodel_ext.compress.calibrate import second_moments
from bigmodel_ext.compress.quantize import HamiltonianConfig, quantize_
from bigmodel_ext.compress.quantize.hamiltonian import spins_of
from bigmodel_ext.nn import BinaryCodedLinear
from torch import nn

N, K, HIDDEN = 24, 96, 80


def correlated(rows, seed):
    """Inputs as networks see them: some directions and some inputs are much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=torch.Generator().manual_seed(99)) / K**0.5
    return (torch.randn(rows, K, generator=generator) * torch.linspace(1, 0.05, K) ** 2) @ mix


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(K, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N))


@pytest.fixture
def loop():
    x = correlated(600, 1)
    return lambda m: m(x)


@torch.no_grad()
def error(layer, linear, x):
    """Of the weights alone: BinaryCodedLinear also rounds its inputs."""
    y = x @ linear.weight.T
    return float((x @ (layer.weight - linear.weight).T).norm() / y.norm())


def energies(report, fqn):
    return [value for name, value in report[fqn].figures.items() if name.startswith("energy")]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_output_error_is_far_below_that_of_codes_that_know_no_data(bits, model, loop):
    old = copy.deepcopy(model)
    report = quantize_(model, HamiltonianConfig(bits=bits, group_size=32, rows=()), loop)
    assert isinstance(model[0], BinaryCodedLinear)
    assert isinstance(model[2], BinaryCodedLinear)
    x = correlated(600, 2)
    plain = BinaryCodedLinear.from_float(old[0], bits, 32)
    assert error(model[0], old[0], x) < (0.85 if bits == 1 else 0.7) * error(plain, old[0], x)
    for fqn, k in (("0", K), ("2", HIDDEN)):
        steps = energies(report, fqn)
        assert len(steps) == 4
        assert all(after <= before for before, after in itertools.pairwise(steps)), steps
        assert steps[-1] < 0.6 * steps[0]
        assert report[fqn].figures["bits/weight"] == bits + 16 * bits * -(-k // 32) / k
    assert report["0"].bytes < report["0"].bytes_before * (bits + 1) / 16
    assert report["0"].output_error < 0.5


def test_the_energy_in_the_report_is_that_of_the_layer(model, loop):
    old = copy.deepcopy(model)
    report = quantize_(model, HamiltonianConfig(bits=2, group_size=32, damping=0.05, rows=()), loop)
    moments = second_moments(old, loop, {"0": old[0]})["0"].double()
    moments += 0.05 * moments.diagonal().mean() * torch.eye(K)
    wrong = (model[0].weight - old[0].weight).detach().double()
    exact = float(((wrong @ moments) * wrong).sum())
    assert energies(report, "0")[-1] == pytest.approx(exact, rel=1e-5)


def test_annealing_goes_below_descent(model, loop):
    reached = {}
    for method in ("descent", "annealing"):
        config = HamiltonianConfig(bits=1, group_size=32, method=method, rows=())
        reached[method] = energies(quantize_(copy.deepcopy(model), config, loop), "0")
    assert reached["annealing"][:4] == reached["descent"]
    assert reached["annealing"][4] < reached["descent"][-1]


def test_without_data_the_report_says_so_and_the_weights_are_what_counts(model):
    old = copy.deepcopy(model)
    report = quantize_(model, HamiltonianConfig(bits=3, group_size=32, rows=()))
    names = [name for name in report["0"].figures if name.startswith("energy")]
    assert names
    assert all(name.endswith("(H = identity)") for name in names)
    plain = BinaryCodedLinear.from_float(old[0], 3, 32)
    square = lambda layer: float((layer.weight - old[0].weight).detach().square().sum())  # noqa: E731
    assert square(model[0]) < square(plain)


def test_sequential_calibration_sees_the_layers_before_it_quantized(model, loop):
    old = copy.deepcopy(model)
    config = HamiltonianConfig(bits=1, group_size=32, rows=(), sequential=True)
    quantize_(model, config, loop)
    half = copy.deepcopy(old)
    half[0].weight.data = model[0].weight
    expected = spins_of(old[2], second_moments(half, loop, {"2": half[2]})["2"], config)
    assert torch.equal(model[2].alpha, expected.alpha)
    plain = spins_of(old[2], second_moments(old, loop, {"2": old[2]})["2"], config)
    assert not torch.equal(model[2].alpha, plain.alpha)


def test_dead_and_tiny_inputs(model):
    x = correlated(50, 1) * 1e-12
    x[:, 7:20] = 0
    report = quantize_(model, HamiltonianConfig(bits=2, group_size=32, rows=()), lambda m: m(x))
    assert report.converted == ("0", "2")
    assert all(torch.tensor(energies(report, "0")).isfinite())
    model = nn.Sequential(nn.Linear(K, N))
    report = quantize_(model, HamiltonianConfig(rows=()), lambda m: m(torch.zeros(3, K)))
    assert model[0].weight.isfinite().all()


def test_a_layer_with_nan_stays_as_it_is(model, loop):
    model[0].weight.data[3, 4] = torch.nan
    first = model[0]
    with pytest.warns(UserWarning, match="no layer was converted"):
        report = quantize_(model, HamiltonianConfig(rows=()), loop, lambda m, fqn: fqn == "0")
    assert model[0] is first
    assert "NaN" in report["0"].reason


@pytest.mark.parametrize(
    ("loop", "text"),
    [(lambda m: m[0](torch.randn(4, K)), "never reached 2"),
     (lambda m: m(torch.full((4, K), torch.nan)), "moments must be finite")],
)  # fmt: skip
@pytest.mark.parametrize("sequential", [True, False])
def test_bad_calibration_leaves_the_model_alone(model, loop, text, sequential):
    before, layers = copy.deepcopy(model.state_dict()), list(model)
    with pytest.raises(ValueError, match=text):
        quantize_(model, HamiltonianConfig(rows=(), sequential=sequential), loop)
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [(dict(bits=0), ValueError, r"bits must be in \[1, 4\], got 0"), (dict(bits=5), ValueError, "bits"),
     (dict(bits=2.0), TypeError, "bits must be an int"), (dict(group_size=12), ValueError, "multiple of 8, got 12"),
     (dict(group_size=0), ValueError, "group_size must be at least 8"), (dict(method="magic"), ValueError, "'magic'"),
     (dict(sweeps=0), ValueError, "sweeps"), (dict(damping=0.0), ValueError, "damping"),
     (dict(damping="a"), TypeError, "damping"), (dict(sequential=1), TypeError, "sequential"),
     (dict(restarts=-1), ValueError, "restarts"), (dict(seed=-1), ValueError, "seed"),
     (dict(steps=1), ValueError, "steps"), (dict(spin=1), TypeError, "spin")],
)  # fmt: skip
def test_settings_that_are_refused(settings, kind, text):
    with pytest.raises(kind, match=text):
        HamiltonianConfig(**settings)
