import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import quantize_
from torch import nn

INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())


def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 64), nn.Linear(64, 5))


X = torch.randn(16, 3, 6, 6)


def test_exchanges_as_the_package_does():
    model, other = make(), make()
    other.load_state_dict(model.state_dict())
    report = quantize_(model, INT8)
    bm.quantize_(other, INT8)
    assert torch.equal(model(X), other(X))
    assert report.converted == ("0", "3", "4")
    assert all(row.output_error is None for row in report.layers)
    assert report["3"].layer == "Int8Linear"
    assert report["3"].bytes < report["3"].bytes_before / 3
    with pytest.raises(KeyError, match="no layer '7'"):
        report["7"]


def test_report_has_the_error_of_each_layers_output_on_the_float_models_inputs():
    model = make()
    seen = nn.Sequential(*model[:3])(X)
    wanted = model[3](seen)
    report = quantize_(model, INT8, lambda m: [m(x) for x in X.split(5)])
    error = (model[3](seen) - wanted).norm() / wanted.norm()
    assert report["3"].output_error == pytest.approx(error.item(), rel=1e-5)
    assert 1e-4 < report["3"].output_error < 0.02
    assert f"{report['3'].output_error:.3%}" in str(report)


def test_filter_and_layers_left_alone():
    model = make()
    model[4].register_forward_hook(lambda *a: None)
    report = quantize_(model, INT8, None, lambda m, fqn: fqn != "0")
    assert [row.fqn for row in report.layers] == ["3"]
    assert type(model[0]) is nn.Conv2d
    assert type(model[4]) is nn.Linear


def test_a_layer_that_would_get_slower_is_reported_with_the_figures(figures):
    figures.given = {("Int8Linear", 1): 0.5}
    model = make()
    with pytest.warns(UserWarning, match="slower"):
        report = quantize_(model, bm.Int8DynamicActivationInt8WeightConfig(), lambda m: m(X))
    assert report.converted == ("0",)
    assert "0.50x at 1 row" in report["3"].reason
    assert report["3"].output_error is None
    assert "0.50x at 1 row" in str(report)


def test_bad_input_leaves_the_model():
    model = make()
    kept = list(model.modules())
    with pytest.raises(TypeError, match="config must be an instance of Int8Dynamic"):
        quantize_(model, object())
    with pytest.raises(ValueError, match="never reached 3, 4"):
        quantize_(model, INT8, lambda m: m[:3](X))
    with pytest.raises(ValueError, match=r"model is itself an nn\.Linear"):
        quantize_(nn.Linear(3, 4), INT8)
    assert list(model.modules()) == kept
