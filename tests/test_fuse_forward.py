"""Chains that a module's own forward writes out: which are found, and which a trace would freeze and so are left."""

import copy

import bigmodel_ext as bm
import pytest
import torch
import torch.nn.functional as F
from layers import assert_same_in_eval
from torch import nn


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop, self.scale = nn.Linear(6, 6), nn.Dropout(0.5), 2.0


class FunctionStyle(Straight):
    def forward(self, x):
        return torch.add(self.drop(F.gelu(self.fc(x))), x)


class MethodStyle(Straight):
    def forward(self, x):
        return x.add(self.drop(self.fc(x).tanh()))


class Helper(Straight):
    def hidden(self, x):
        return self.drop(F.relu(self.fc(x)))

    def forward(self, x, y):
        return y + self.hidden(x)


@pytest.mark.parametrize(("cls", "activation"), [(FunctionStyle, "gelu"), (MethodStyle, "tanh"), (Helper, "relu")])
def test_other_ways_to_write_the_chain(cls, activation):
    model = cls().eval()
    args = (torch.randn(4, 6), torch.randn(4, 6))[: 2 if cls is Helper else 1]
    expected = copy.deepcopy(model)(*args)
    bm.fuse_dropout_(model)
    torch.testing.assert_close(model(*args), expected)
    assert model.drop.activation == activation
    assert model.fc.bias is None


def test_residual_computed_after_the_dropout_and_broadcast():
    class Later(Straight):
        def forward(self, x):
            y = self.drop(F.relu(self.fc(x)))
            shortcut = torch.tanh(x).sum(0)
            return shortcut + y

    model = Later()
    assert_same_in_eval(model, torch.randn(4, 6))
    assert model.drop.activation == "relu"


class Branches(Straight):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return x + self.drop(F.gelu(self.fc(x)))


class BranchesOnGlobalState(Straight):
    def forward(self, x):
        if torch.is_inference_mode_enabled():
            x = -x
        return x + self.drop(F.gelu(self.fc(x)))


class ReadsAttribute(Straight):
    def forward(self, x):
        return x + self.drop(F.gelu(self.fc(x))) * self.scale


class ReadsMode(Straight):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training) + self.drop(F.gelu(self.fc(x)))


class OptionalArgument(Straight):
    def forward(self, x, mask=None):
        return x + self.drop(F.gelu(self.fc(x)))


GLOBAL = 3.0


class ReadsGlobal(Straight):
    def forward(self, x):
        return x + self.drop(F.gelu(self.fc(x))) * GLOBAL


class Counts(Straight):
    calls = 0

    def forward(self, x):
        self.calls = 1
        return x + self.drop(F.gelu(self.fc(x)))


class Random(Straight):
    def forward(self, x):
        return x * torch.rand(()) + self.drop(F.gelu(self.fc(x)))


class WritesInPlace(Straight):
    def forward(self, x):
        y = self.drop(F.gelu(self.fc(x)))
        x += 1
        return x + y


class HelperBranches(Straight):
    def hidden(self, x):
        return x if x.shape[0] > 2 else self.fc(x)

    def forward(self, x):
        return x + self.drop(F.gelu(self.hidden(x)))


class UsesBuiltin(Straight):
    def forward(self, x):
        return x + self.drop(F.gelu(self.fc(x))) * getattr(self, "scale")  # noqa: B009


class CalledElsewhere(Straight):
    def forward(self, x):
        return x + self.drop(F.gelu(self.fc(x)))

    def features(self, x):
        return self.drop(self.fc(x))


class CalledTwice(Straight):
    def forward(self, x):
        return self.drop(F.gelu(self.fc(x))) + self.drop(self.fc(x))


class ReadsBias(Straight):
    def forward(self, x):
        return x + self.drop(F.gelu(self.fc(x))) + self.fc.bias


class SuperCall(FunctionStyle):
    def forward(self, x):
        return super().forward(x)


REFUSED = [
    Branches,
    BranchesOnGlobalState,
    ReadsAttribute,
    ReadsMode,
    OptionalArgument,
    ReadsGlobal,
    Counts,
    Random,
    WritesInPlace,
    HelperBranches,
    UsesBuiltin,
    CalledElsewhere,
    CalledTwice,
    SuperCall,
]


@pytest.mark.parametrize("cls", REFUSED)
def test_what_a_trace_would_freeze_is_left(cls):
    model = cls().eval()
    torch.manual_seed(1)
    expected = copy.deepcopy(model)(torch.ones(4, 6))
    bm.fuse_dropout_(model)
    torch.manual_seed(1)
    torch.testing.assert_close(model(torch.ones(4, 6)), expected)
    assert type(model) is cls
    assert model.fc.bias is not None
    assert (type(model.drop), model.drop.activation) == (bm.nn.FusedDropout, "none")


def test_an_activation_that_writes_its_input_keeps_doing_so():
    class InPlace(Straight):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.drop(self.act(x))
            return x + y

    model, x = InPlace().eval(), torch.randn(4, 6)
    expected = 2 * x.relu()
    bm.fuse_dropout_(model)
    torch.testing.assert_close(model(x), expected)


def test_a_bias_that_is_read_does_not_move():
    model = ReadsBias()
    assert_same_in_eval(model, torch.randn(4, 6))
    assert model.fc.bias is not None
    assert model.drop.activation == "gelu"
