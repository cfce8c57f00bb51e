import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext._checks import ACTIVATIONS
from layers import INT8, Mlp, assert_same_in_eval, network
from torch import nn

MODULES = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(), "softplus": nn.Softplus(),
}  # fmt: skip


def test_the_table_of_activations_is_whole():
    assert {"none", *MODULES} == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", MODULES)
def test_sequential_chain(activation):
    model = nn.Sequential(nn.Linear(6, 8), copy.deepcopy(MODULES[activation]), nn.Dropout(0.3))
    bias, weight, x = model[0].bias, model[0].weight, torch.randn(5, 6)
    assert_same_in_eval(model, x)
    assert [type(m) for m in model] == [nn.Linear, bm.nn.Absorbed, bm.nn.FusedDropout]
    assert (model[2].p, model[2].activation) == (0.3, activation)
    assert model[2].bias is bias
    assert model[0].weight is weight
    assert model[0].bias is None
    assert list(model.state_dict()) == ["0.weight", "2.bias"]
    assert not model[2].training


@pytest.mark.parametrize("activation", MODULES)
def test_activation_and_dropout_alone(activation):
    model = nn.Sequential(nn.LayerNorm(6), copy.deepcopy(MODULES[activation]), nn.Dropout(0.3))
    assert_same_in_eval(model, torch.randn(5, 6))
    assert model[2].activation == activation
    assert model[2].bias is None


def test_linear_and_dropout_leaves_the_bias():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3))
    assert_same_in_eval(model, torch.randn(5, 6))
    assert model[0].bias is not None
    assert model[1].activation == "none"


@pytest.mark.parametrize(
    "activation",
    [nn.GELU("tanh"), nn.LeakyReLU(0.2), nn.Softplus(2.0), nn.Softplus(1, 10), nn.ELU(), nn.Hardswish(), nn.PReLU()],
    ids=str,
)
def test_other_activations_are_not_taken(activation):
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Dropout(0.3))
    assert_same_in_eval(model, 3 * torch.randn(50, 6))
    assert model[1] is activation
    assert model[2].activation == "none"


def test_compressed_layers_keep_their_bias():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3))
    bm.quantize_(model, INT8)
    assert_same_in_eval(model, torch.randn(5, 6))
    assert model[0].bias is not None
    assert model[2].activation == "relu"


def hooked():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3))
    model[1].register_forward_hook(lambda m, a, y: y + 1)
    return model


def hooked_dropout():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3))
    model[2].register_forward_hook(lambda m, a, y: y + 1)
    return model


def tied_bias():
    a, b = nn.Linear(6, 8), nn.Linear(8, 8)
    b.bias = a.bias
    return nn.Sequential(a, nn.ReLU(), nn.Dropout(0.3), b)


def shared_linear():
    linear = nn.Linear(6, 6)
    return nn.Sequential(linear, nn.ReLU(), nn.Dropout(0.3), linear)


def shared_dropout():
    dropout = nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), dropout, nn.Linear(6, 6), nn.Tanh(), dropout)


def inplace_on_the_input():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.3))


class Subclass(nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x)) + self[0].bias)


@pytest.mark.parametrize(
    "build",
    [hooked, hooked_dropout, tied_bias, shared_linear, shared_dropout, inplace_on_the_input,
     lambda: Subclass(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3))],
)  # fmt: skip
def test_what_is_used_otherwise_is_left(build):
    model = build()
    first_bias = getattr(model[0], "bias", None)
    x = torch.randn(5, 6)
    before = x.clone()
    expected = copy.deepcopy(model).eval()(x.clone())
    bm.fuse_dropout_(model.eval())
    torch.testing.assert_close(model(x), expected)
    assert first_bias is None or model[0].bias is first_bias
    if build is inplace_on_the_input:
        assert not torch.equal(x, before), "ReLU(inplace=True) should still write its input"


def test_inplace_after_a_linear_is_safe():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(0.3, inplace=True))
    assert_same_in_eval(model, torch.randn(5, 6))
    assert model[2].activation == "relu"


def test_a_lone_inplace_dropout_stays():
    model = nn.Sequential(nn.LayerNorm(6), nn.Dropout(0.3, inplace=True), nn.Dropout2d(0.1), nn.AlphaDropout(0.1))
    kinds = [type(m) for m in model]
    bm.fuse_dropout_(model)
    assert [type(m) for m in model] == kinds


@pytest.mark.parametrize("activation", MODULES)
def test_residual_block(activation):
    block = Mlp(8, copy.deepcopy(MODULES[activation]))
    bias, x = block.fc1.bias, torch.randn(3, 5, 8)
    assert_same_in_eval(block, x)
    assert (block.drop1.activation, block.drop1.bias is bias, block.fc1.bias) == (activation, True, None)
    assert block.drop2.activation == "none"
    calls = []
    block.drop2.register_forward_hook(lambda m, args, y: calls.append(len(args)))
    block(x)
    assert calls == [2], "the residual was not handed to the fused dropout"


def test_in_training_it_is_the_same_chain():
    block = Mlp(64, p=0.5)
    bm.fuse_dropout_(block)
    x = torch.randn(16, 64, requires_grad=True)
    torch.manual_seed(5)
    y = block(x)
    torch.manual_seed(5)
    hidden = bm.functional.fused_dropout(block.fc1(x), 0.5, True, block.drop1.bias, "gelu")
    assert torch.equal(y, bm.functional.fused_dropout(block.fc2(hidden), 0.5, residual=x))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_state_moves_with_the_parameters():
    model = network()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bm.fuse_dropout_(model)
    after = dict(model.named_parameters())
    assert {id(p) for p in after.values()} == {id(p) for p in before.values()}
    assert set(before) - set(after) == {"0.0.bias", "1.fc1.bias"}
    assert set(after) - set(before) == {"0.2.bias", "1.drop1.bias"}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in after.values()}


def test_doing_it_again_changes_nothing():
    model = bm.fuse_dropout_(network())
    kinds = [(id(m), type(m)) for m in model.modules()]
    bm.fuse_dropout_(model)
    assert [(id(m), type(m)) for m in model.modules()] == kinds


def test_copies_work():
    model = bm.fuse_dropout_(network())
    x = torch.randn(2, 7, 24)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_number_may_be_the_residual():
    layer = bm.nn.FusedDropout(0.5, "relu").eval()
    x = torch.randn(3, 4)
    assert torch.equal(layer(x, 2.0), torch.relu(x) + 2.0)
