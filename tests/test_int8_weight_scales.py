"""weight_scales="mse": the scale of each output that rounds its weights best."""

import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.nn._int8_weight import quantized_weight
from torch import nn


def error(weight, q, scale):
    return (q * scale[:, None] - weight).square().sum(1)


def test_never_worse_than_the_largest_weights_and_better_with_outliers():
    weight = torch.randn(50, 9000)  # the more weights, the more clipping a few is worth
    q, scale = quantized_weight(weight, "mse")
    q0, scale0 = quantized_weight(weight)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) == 127
    ours, plain = error(weight, q, scale), error(weight, q0, scale0)
    assert bool((ours <= plain).all())
    assert float(ours.sum()) < 0.97 * float(plain.sum())
    for clip in (0.952, 0.9, 0.8):  # no other clip on the grid is better
        tried = scale0 * clip
        other = (weight / tried[:, None]).round().clamp(-127, 127)
        assert bool((ours <= error(weight, other, tried) * 1.0001).all())


def test_special_rows_are_those_of_max():
    weight = torch.randn(6, 30)
    weight[0], weight[1, 3], weight[2, 4] = 0.0, math.nan, math.inf
    q, scale = quantized_weight(weight, "mse")
    assert scale[0] == 0.0
    assert scale.isnan().tolist() == [False, True, True, False, False, False]
    assert not q[:3].any()
    assert quantized_weight(weight[:0], "mse")[0].shape == (0, 30)


def test_configs_reach_the_layers():
    for layer in (nn.Linear(3000, 20), nn.Conv2d(300, 20, 3)):
        nn.init.normal_(layer.weight)
        models = {s: nn.Sequential(layer, nn.Identity()) for s in ("max", "mse")}
        for scales, model in models.items():
            bm.quantize_(model, bm.Int8DynamicActivationInt8WeightConfig(scales, rows=()))
        wrong = {s: float((m[0].weight - layer.weight).detach().norm()) for s, m in models.items()}
        assert wrong["mse"] < 0.99 * wrong["max"]
    with pytest.raises(ValueError, match="weight_scales must be one of max, mse, got 'best'"):
        bm.Int8DynamicActivationInt8WeightConfig("best")
    with pytest.raises(ValueError, match="weight_scales must be one of max, mse, got 'best'"):
        bm.nn.Int8Linear.from_float(nn.Linear(3, 4), weight_scales="best")
