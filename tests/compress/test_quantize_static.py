import math

import pytest
import torch
from bigmodel_ext import load_model, save_model
from bigmodel_ext.compress.quantize import Int8StaticActivationInt8WeightConfig, quantize_
from bigmodel_ext.compress.quantize.observers import BINS, Magnitudes
from torch import nn


def make():
    return nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def config(observer="mse", **kw):
    return Int8StaticActivationInt8WeightConfig(observer, rows=(), **kw)


X = torch.randn(200, 40, generator=torch.Generator().manual_seed(1))


def loop(model):
    for x in X.split(50):
        model(x)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_calibrated_layers_come_close_and_reload_bit_equal(tmp_path, observer):
    model = make()
    wanted = model(X)
    report = quantize_(model, config(observer), loop)
    assert report.converted == ("0", "2", "4")
    error = float(((model(X) - wanted).norm() / wanted.norm()).detach())
    assert 1e-4 < error < 0.03
    assert all(0.0 < row.output_error < 0.03 for row in report.layers)
    assert model[0].input_scale.item() == pytest.approx(report["0"].figures["input scale"])
    save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(load_model(make(), tmp_path / "model.safetensors")(X), model(X))


def test_minmax_is_the_largest_magnitude_and_other_data_give_worse_scales():
    errors = []
    for data in (X, X * 100):
        torch.manual_seed(0)
        model = make()
        wanted = model(X)
        report = quantize_(model, config("minmax"), lambda m, data=data: m(data))
        assert report["0"].figures["input scale"] == pytest.approx(float(data.abs().max()) / 127)
        errors.append(float((model(X) - wanted).detach().norm()))
    assert errors[1] > 10 * errors[0]


def test_clipping_outliers_costs_less_than_keeping_them():
    """One value in 20000 is 100 times as large: least squares and percentile clip it, min-max rounds all by it."""
    x = torch.randn(500, 40, generator=torch.Generator().manual_seed(2))
    x[7, 3] = 300.0
    errors = {}
    for observer in ("minmax", "percentile", "mse"):
        torch.manual_seed(0)
        model = make()
        usual = x[100:]
        wanted = model[0](usual)
        quantize_(model, config(observer, percentile=99.9), lambda m: m(x), lambda m, fqn: fqn == "0")
        errors[observer] = float(((model[0](usual) - wanted).norm() / wanted.norm()).detach())
    assert errors["percentile"] < errors["minmax"] / 10
    mean = Magnitudes()
    mean.add(torch.cat([torch.rand(100000), torch.tensor([3.0])]))
    # n c^2 / 127^2 / 12 + (3 - c)^2 is least at 3 / (1 + n / 127^2 / 12)
    assert mean.least_squares() == pytest.approx(3 / (1 + 1e5 / 127**2 / 12), rel=0.05)


def test_histogram_over_batches_is_that_of_all_at_once():
    values = torch.cat([torch.zeros(50), torch.rand(400), 5 * torch.rand(300), torch.tensor([77.0])])
    whole, parts = Magnitudes(), Magnitudes()
    whole.add(values)
    for part in values.split(25):
        parts.add(-part)
    assert parts.largest == whole.largest == 77.0
    assert parts.seen == whole.seen == 751
    assert float(parts.counts.sum()) == float((values > 0).sum())
    for percent in (50.0, 90.0, 99.0, 99.9, 100.0):
        exact = float(values.sort().values[max(math.ceil(percent / 100 * 751) - 1, 0)])
        for histogram in (whole, parts):
            assert exact <= histogram.percentile(percent) + 1e-6
            assert histogram.percentile(percent) <= exact + 2 * histogram.width
    assert whole.width == pytest.approx(77.0 / BINS)


def test_least_squares_beats_every_other_clip():
    x = torch.randn(20000) ** 3
    histogram = Magnitudes()
    histogram.add(x)

    def error(clip):
        scale = clip / 127
        return float(((x / scale).round().clamp(-127, 127) * scale - x).square().mean())

    best = error(histogram.least_squares())
    assert best < 0.95 * error(histogram.largest)
    assert all(best <= error(histogram.largest * i / 50) * 1.02 for i in range(1, 51))


def test_layers_that_only_see_zeros():
    model = make()
    quantize_(model, config(), lambda m: m(torch.zeros(3, 40)), lambda m, fqn: fqn == "0")
    assert torch.equal(model[0](X), model[0].bias.expand(200, 64))


def test_bad_input_leaves_the_model():
    model = make()
    kept = list(model.modules())
    with pytest.raises(ValueError, match="needs a forward_loop"):
        quantize_(model, config())
    with pytest.raises(ValueError, match="never reached 2, 4"):
        quantize_(model, config(), lambda m: m[0](X))
    with pytest.raises(ValueError, match="0: the calibration data hold NaN"):
        quantize_(model, config(), lambda m: m(torch.full((2, 40), math.nan)))
    assert list(model.modules()) == kept
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="observer must be one of minmax, percentile, mse, got 'max'"):
        config("max")
    for bad in (0.0, 100.1, math.nan):
        with pytest.raises(ValueError, match=r"percentile must be in \(0, 100\]"):
            config(percentile=bad)
    with pytest.raises(TypeError, match="percentile must be a number"):
        config(percentile=True)
