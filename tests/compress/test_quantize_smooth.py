import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import Int8StaticActivationInt8WeightConfig, SmoothQuantConfig, quantize_
from bigmodel_ext.compress.quantize._folds import Fold, find_folds
from bigmodel_ext.compress.quantize.smooth import factors, smoothed
from bigmodel_ext.train.vit import ViT, ViTConfig
from torch import nn

INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())


def config(**kw):
    return SmoothQuantConfig(rows=(), **kw)


def linears(model):
    return {fqn: m for fqn, m in model.named_modules() if type(m) is nn.Linear}


def vit(outliers=True):
    torch.manual_seed(0)
    model = ViT(ViTConfig(48, 2, 2, 96)).eval()
    if outliers:
        with torch.no_grad():
            for block in model.blocks:
                for norm in (block.norm1, block.norm2):
                    norm.weight[::12] *= 60
    return model


X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def loop(model):
    for x in X.split(10):
        model(x)


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def test_folds_of_a_transformer():
    model = vit()
    folds, why = find_folds(model, linears(model))
    assert folds == [
        fold
        for i in range(2)
        for fold in (
            Fold(f"blocks.{i}.norm1", (f"blocks.{i}.attention.qkv",)),
            Fold(f"blocks.{i}.norm2", (f"blocks.{i}.fc1",)),
            Fold(f"blocks.{i}.fc1", (f"blocks.{i}.fc2",)),
        )
    ]
    assert why.keys() == {"embed", "head", "blocks.0.attention.proj", "blocks.1.attention.proj"}
    assert "its input comes from reshape" in why["embed"]


class Odd(nn.Module):
    """Norms whose output goes elsewhere too, twice, or through a function that factors do not pass."""

    def __init__(self):
        super().__init__()
        self.residual, self.twice, self.curved, self.plain = (nn.LayerNorm(8) for _ in range(4))
        self.bare = nn.LayerNorm(8, elementwise_affine=False)
        self.shared = nn.RMSNorm(8)
        self.a, self.b, self.c, self.d, self.e, self.q, self.k = (nn.Linear(8, 8) for _ in range(7))

    def forward(self, x):
        y = self.residual(x)
        x = y + self.a(y)
        x = self.b(self.twice(x)) + self.twice(x)
        x = self.c(nn.functional.gelu(self.curved(x)))
        x = self.d(self.bare(x))
        x = self.e(nn.functional.relu(self.plain(x)))
        z = self.shared(x)
        return self.q(z) * self.k(z)


def test_only_provable_folds_are_taken():
    model = Odd().eval()
    folds, why = find_folds(model, linears(model))
    assert folds == [Fold("plain", ("e",)), Fold("shared", ("q", "k"))]
    assert why == {
        "a": "residual's output also goes to add",
        "b": "twice is called 2 times",
        "c": "its input comes from gelu",
        "d": "bare has no weight to take the factors",
    }
    part, rest = find_folds(model, {"q": model.q, "e": model.e})
    assert part == [Fold("plain", ("e",))]
    assert rest == {"q": "shared's output also goes to k, which is not quantized"}


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        if x.sum() > 0:
            return self.fc(self.norm(self.inner(x)))
        return self.inner(x)


def test_parts_of_an_untraceable_model_are_found_and_the_rest_can_be_declared():
    model, x = Untraceable().eval(), torch.rand(20, 8) + 1
    with torch.no_grad():
        model.norm.weight[3] = 40.0
    folds, why = find_folds(model, linears(model))
    assert folds == [Fold("inner.0", ("inner.1",))]
    assert why == {"fc": "the module that calls it can't be traced by torch.fx"}
    report = quantize_(copy.deepcopy(model), config(alpha=0.5), lambda m: m(x))
    assert "can't be traced" in report["fc"].note
    declared = quantize_(model, config(alpha=0.5, folds=(("norm", ("fc",)),)), lambda m: m(x))
    assert declared["fc"].figures["alpha"] == 0.5
    assert declared["fc"].output_error < 0.5 * report["fc"].output_error


def test_factors():
    w = torch.tensor([[1.0, -4.0, 0.0], [2.0, 1.0, 0.0]])
    s = factors(torch.tensor([8.0, 0.0, 5.0]), [w], 0.5)
    torch.testing.assert_close(s, torch.tensor([2.0, 1.0, 1.0]))
    s = factors(torch.tensor([8.0, 9.0, 5.0]), [w, 3 * w], 0.25)
    torch.testing.assert_close(s[:2], torch.tensor([8**0.25 / 6**0.75, 9**0.25 / 12**0.75]))


@pytest.mark.parametrize("alpha", [None, 0.5, 1.0])
def test_the_float_model_computes_the_same(alpha):
    model = vit()
    wanted, weight = model(X), model.blocks[0].fc1.weight.detach().clone()
    with smoothed(model, config(alpha=alpha), loop) as (alphas, why):
        assert relative(model(X), wanted) < 1e-5
        assert "blocks.0.fc1" in alphas
        assert not torch.equal(model.blocks[0].fc1.weight, weight)
        assert alphas.keys().isdisjoint(why)


@pytest.mark.parametrize("static", [False, True])
def test_outliers_are_smoothed_away(static):
    model = vit()
    wanted = model(X)
    plain, smooth = copy.deepcopy(model), copy.deepcopy(model)
    plain_config = Int8StaticActivationInt8WeightConfig(rows=()) if static else INT8
    before, after = quantize_(plain, plain_config, loop), quantize_(smooth, config(static=static), loop)
    assert relative(smooth(X), wanted) < 0.7 * relative(plain(X), wanted)
    for fqn in ("blocks.0.attention.qkv", "blocks.0.fc1", "blocks.1.fc1"):
        assert after[fqn].output_error < 0.6 * before[fqn].output_error
        assert after[fqn].figures["alpha"] > 0
        assert after[fqn].note == ""
    assert "not smoothed: its input comes from" in after["embed"].note
    assert (smooth.blocks[0].fc1.input_scale is not None) == static


def test_the_search_is_nowhere_worse_than_no_smoothing():
    model = vit(outliers=False)
    before, after = quantize_(copy.deepcopy(model), INT8, loop), quantize_(model, config(), loop)
    for row in after.layers:
        assert row.output_error < 1.02 * before[row.fqn].output_error


def test_reload_is_bit_equal(tmp_path):
    model = vit()
    quantize_(model, config(static=True), loop)
    bm.save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(bm.load_model(vit(), tmp_path / "m.safetensors")(X), model(X))


def test_bad_input_leaves_the_model():
    model = vit()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cases = (
        (config(), None, "needs a forward_loop"),
        (config(), lambda m: m.blocks(torch.rand(2, 4, 48)), "never reached embed, head"),
        (config(folds=(("norm9", ("head",)),)), loop, "has no module 'norm9'"),
        (config(folds=(("norm", ()),)), loop, "must go to linear layers"),
        (config(folds=(("blocks.0.norm1", ("blocks.0.fc2",)),)), loop, "has 48 outputs, 'blocks.0.fc2' takes 96"),
        (config(folds=(("norm", ("blocks.0.fc1",)),)), loop, "smoothing would change what"),
    )
    for bad, forward_loop, message in cases:
        with pytest.raises(ValueError, match=message):
            quantize_(model, bad, forward_loop)
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
            config(alpha=bad)
    with pytest.raises(TypeError, match="alpha must be a number"):
        config(alpha="half")
