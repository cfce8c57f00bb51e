"""fuse_activation_: where a converted layer may compute the activation behind it, and every place where it must not."""

import copy
import warnings

import bigmodel_ext as bm
import pytest
import torch
from fusing import CONVERSIONS, Gated, absorbed, quantized
from layers import Mlp
from test_fuse import MODULES
from torch import nn


def assert_fused(model, x, names):
    """The modules `names`, and no others, are gone; outputs stay; nothing is warned about."""
    expected = copy.deepcopy(model)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bm.fuse_activation_(model) is model
    assert absorbed(model) == names
    torch.testing.assert_close(model(x), expected)


def assert_left(model, x, reason):
    """Nothing is changed, and the warning says why."""
    kinds = [(fqn, m) for fqn, m in model.named_modules()]
    expected = model(x)
    with pytest.warns(UserWarning, match=reason):
        bm.fuse_activation_(model)
    assert [(fqn, m) for fqn, m in model.named_modules()] == kinds
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("activation", MODULES)
def test_sequential(kind, activation):
    model = CONVERSIONS[kind](nn.Sequential(nn.Linear(16, 8), copy.deepcopy(MODULES[activation]), nn.Softmax(-1)))
    layer, state = model[0], model.state_dict()
    assert_fused(model, torch.randn(5, 16), ["1"])
    assert (model[0], type(layer).__name__, layer.activation) == (layer, kind, activation)
    assert list(model.state_dict()) == list(state)


class Intermediate(nn.Module):
    """As encoders of transformers have it."""

    def __init__(self, activation):
        super().__init__()
        self.dense, self.act = nn.Linear(16, 32), activation

    def forward(self, hidden):
        hidden = self.dense(hidden)
        hidden = self.act(hidden)
        return hidden


def test_modules_of_ones_own():
    model = quantized(nn.Sequential(Mlp(16), Gated(), Intermediate(nn.ReLU(inplace=True))).eval())
    assert_fused(model, torch.randn(5, 16), ["0.act", "1.act", "2.act"])
    assert [model[0].fc1.activation, model[1].gate.activation, model[2].dense.activation] == ["gelu", "silu", "relu"]
    assert model[1].up.activation == "none"


def test_transformers_encoder():
    transformers = pytest.importorskip("transformers")
    for name, expected in (
        ("gelu", "gelu"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("gelu_new", None),
        ("gelu_python", None),
    ):
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
            hidden_act=name, attn_implementation="sdpa",
        )  # fmt: skip
        model = quantized(transformers.BertModel(config, add_pooling_layer=False).eval())
        ids = torch.arange(10)[None]
        before = model(ids).last_hidden_state
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            bm.fuse_activation_(model)
        assert model.encoder.layer[0].intermediate.dense.activation == (expected or "none")
        assert bool(absorbed(model)) == (expected is not None)
        assert expected or "no kernel computes exactly what" in str(told[0].message)
        torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "activation", [nn.GELU("tanh"), nn.LeakyReLU(0.2), nn.Softplus(2.0), nn.ELU(), nn.Hardswish(), nn.PReLU()], ids=str
)
def test_other_activations(activation):
    assert_left(
        quantized(nn.Sequential(nn.Linear(16, 8), activation)), torch.randn(5, 16), "no kernel computes exactly"
    )


def hooked(where):
    def build():
        model = quantized(nn.Sequential(nn.Linear(16, 8), nn.GELU()))
        model[where].register_forward_hook(lambda m, a, y: y + 1)
        return model

    return build


def shared_layer():
    return quantized(nn.Sequential(layer := nn.Linear(16, 16), nn.GELU(), nn.Sequential(layer)))


def shared_activation():
    act = nn.GELU()
    return quantized(nn.Sequential(nn.Linear(16, 16), act, nn.Linear(16, 16), act))


def replaced_forward(where):
    def build():
        model = quantized(nn.Sequential(nn.Linear(16, 8), nn.GELU()))
        before = model[where].forward
        model[where].forward = lambda x: before(x) + 1
        return model

    return build


def fused_already():
    model = quantized(nn.Sequential(nn.Linear(16, 8), nn.GELU()))
    model[0].activation = "relu"
    return model


class Own(Intermediate):
    """Variations of a forward, given as functions."""

    def __init__(self):
        super().__init__(nn.GELU())
        self.head = nn.Linear(32, 16)


class UsedTwice(Own):
    def forward(self, x):
        y = self.dense(x)
        return self.act(y) + y


class CalledTwice(Own):
    def forward(self, x):
        return self.act(self.dense(x)) + self.act(self.dense(x + 1))


class Branches(Own):
    def forward(self, x):
        y = self.dense(x)
        if y.sum() > 0:
            return self.act(y)
        return y


class OtherMethod(Own):
    def logits(self, x):
        return self.dense(x)

    def forward(self, x):
        return self.act(self.dense(x))


class ReachesIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.seq, self.own = nn.Sequential(nn.Linear(16, 16), nn.GELU()), Intermediate(nn.GELU())

    def forward(self, x):
        return self.own(self.seq(x)).sum() + self.seq[0](x) + self.own.dense(x).sum()


class MethodsOfASequential(nn.Sequential):
    def features(self, x):
        return self[0](x)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (hooked(0), "the layer has hooks"),
        (hooked(1), "the activation has hooks"),
        (shared_layer, "the layer is used in several places"),
        (shared_activation, "the activation is used in several places"),
        (replaced_forward(0), "the layer's forward was replaced"),
        (replaced_forward(1), "the activation's forward was replaced"),
        (fused_already, "the layer computes relu already"),
        (lambda: quantized(UsedTwice()), "act: the layer's result is used elsewhere too"),
        (lambda: quantized(CalledTwice()), "act: one of them is called more than once"),
        (lambda: quantized(Branches()), "act: Branches.forward branches or loops"),
        (lambda: quantized(OtherMethod()), "act: other code of OtherMethod uses one of them"),
        (lambda: quantized(ReachesIn()), "ReachesIn.forward does more with seq than call it"),
        (lambda: quantized(ReachesIn()), "ReachesIn.forward does more with own than call it"),
        (
            lambda: quantized(MethodsOfASequential(nn.Linear(16, 8), nn.GELU())),
            "1: Sequential.forward branches or loops",
        ),
    ],
)
def test_left_as_they_are(build, reason):
    assert_left(build(), torch.randn(5, 16), reason)


def test_dense_layers_and_others_in_between_are_none_of_its_business():
    act = nn.Identity()
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.GELU())
    assert_fused(model, torch.randn(5, 16), [])
    between = quantized(nn.Sequential(nn.Linear(16, 16), act, nn.Linear(16, 16), act, nn.ReLU()))
    assert_fused(between, torch.randn(5, 16), [])


def test_training_mode_and_gradients():
    model = quantized(nn.Sequential(Mlp(16, p=0.0), nn.Linear(16, 4)))
    other, x = copy.deepcopy(model), torch.randn(5, 16)
    bm.fuse_activation_(model)
    for m in (model, other):
        m(x).square().sum().backward()
    for ours, torchs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, torchs.grad)


def test_nothing_is_changed_if_it_raises(monkeypatch):
    from bigmodel_ext import _epilogue

    model = quantized(nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU()))
    kinds = list(model.named_modules())
    stop = lambda self, m: (_ for _ in ()).throw(KeyError("stop"))  # noqa: E731
    monkeypatch.setattr(_epilogue.Changes, "_stop_fast_paths", stop)
    with pytest.raises(KeyError, match="stop"):
        bm.fuse_activation_(model)
    assert list(model.named_modules()) == kinds
    assert model[0].activation == model[2].activation == "none"
