import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import quantize_below_, quantize_within_
from torch import nn

INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())
X = torch.randn(64, 40, generator=torch.Generator().manual_seed(1))


def make():
    """The second and, less so, the third layer's inputs have a channel that takes all of int8's range."""
    model = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5)).eval()
    with torch.no_grad():
        for layer, after, factor in ((model[0], model[2], 3000.0), (model[2], model[4], 200.0)):
            layer.weight[7] *= factor
            layer.bias[7] *= factor
            after.weight[:, 7] /= factor
    return model


def loop(model):
    model(X)


def score_of(wanted):
    return lambda model: -float((model(X) - wanted).norm() / wanted.norm())


def test_layers_above_the_error_stay_float():
    report = quantize_below_(make(), INT8, loop, 1.0)
    errors = {row.fqn: row.output_error for row in report.layers}
    assert errors["2"] > errors["4"] > errors["0"]
    model = make()
    kept = quantize_below_(model, INT8, loop, (errors["2"] + errors["4"]) / 2)
    assert kept.converted == ("0", "4")
    assert type(model[2]) is nn.Linear
    assert kept["2"].reason.startswith("kept float: its output error would be ")
    assert kept["2"].layer == "Linear"
    assert kept["2"].bytes == kept["2"].bytes_before


def drop(kept):
    torch.manual_seed(0)
    model = make()
    score = score_of(model(X).detach())
    bm.quantize_(model, INT8, lambda m, fqn: fqn not in kept)
    return -score(model)


def test_as_few_as_the_budget_takes_stay_float():
    drops = [drop(()), drop(("2",)), drop(("2", "4"))]
    assert drops[0] > 2 * drops[1] > 4 * drops[2] > 0
    for count, budget in ((0, drops[0] * 1.01), (1, drops[1] * 1.01), (2, drops[2] * 1.01), (3, drops[2] / 10)):
        torch.manual_seed(0)
        model = make()
        score = score_of(model(X).detach())
        report = quantize_within_(model, INT8, loop, score, budget)
        kept = [row.fqn for row in report.layers if row.reason]
        assert sorted(kept) == sorted(["2", "4", "0"][:count])
        assert score(model) >= -budget
        assert all("the score" in report[fqn].reason for fqn in kept)
        assert [type(model.get_submodule(fqn)) for fqn in kept] == [nn.Linear] * count


def test_bad_input_leaves_the_model():
    model = make()
    kinds = [type(m) for m in model]
    for kw, message in (
        ({"max_drop": -1.0}, "max_drop must be finite and at least 0, got -1.0"),
        ({"max_drop": 0.1, "drop_type": "percent"}, "drop_type must be one of absolute, relative, got 'percent'"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_within_(model, INT8, loop, lambda m: 1.0, **kw)
    with pytest.raises(ValueError, match="validation_fn must return a finite number, got nan"):
        quantize_within_(model, INT8, loop, lambda m: float("nan"), 0.1)
    with pytest.raises(ValueError, match="max_output_error must be at least 0"):
        quantize_below_(model, INT8, loop, float("nan"))
    assert [type(m) for m in model] == kinds
