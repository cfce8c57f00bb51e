"""What calibration may leave on a user's model: nothing."""

import pytest
import torch
from bigmodel_ext.compress.calibrate import observe, second_moments
from bigmodel_ext.compress.controller import Budget
from bigmodel_ext.compress.measure import latencies
from bigmodel_ext.train.loop import evaluating
from torch import nn

X = torch.randn(8, 3, 6, 6)


def _net():
    """In train mode, with a frozen BatchNorm."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3)).train()
    net[1].eval()
    return net


@pytest.mark.parametrize("look", [
    lambda net: observe(net, lambda m: m(X), {"4": net[4]}, lambda *seen: None),
    lambda net: Budget(lambda m: m(X).sum().item(), 0.0).score(net),
    lambda net: latencies({"net": net}, X, rounds=1),
])  # fmt: skip
def test_each_module_keeps_its_own_mode(look):
    net = _net()
    look(net)
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]


def test_modes_come_back_after_a_block_that_changes_them():
    net = _net().eval()
    with evaluating(net):
        net.train()
    assert not any(m.training for m in net.modules())


def test_what_a_model_keeps_of_a_call_can_be_trained_with():
    class Cached(nn.Module):
        """As rotary embeddings keep their tables."""

        def __init__(self):
            super().__init__()
            self.layer, self.table = nn.Linear(6, 6), None

        def forward(self, x):
            if self.table is None:
                self.table = torch.linspace(0.5, 1.0, 6)
            return self.layer(x) * self.table

    model = Cached()
    observe(model, lambda m: m(X), {"layer": model.layer}, lambda *seen: None)
    model(X).sum().backward()
    assert model.layer.weight.grad is not None


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (2, 3)])
def test_moments_of_convolutions_that_keep_their_size(kernel, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation, bias=False)
    found = second_moments(nn.Sequential(conv), lambda m: m(X), {"0": conv})["0"]
    w = conv.weight.detach().flatten(1)
    power = (w @ found @ w.T).trace()
    torch.testing.assert_close(power, conv(X).detach().square().sum(1).mean())
    valid = nn.Conv2d(3, 4, kernel, padding="valid", dilation=dilation)
    assert second_moments(nn.Sequential(valid), lambda m: m(X), {"0": valid})["0"].isfinite().all()


def test_an_input_by_keyword_is_refused_with_the_layers_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(input=x)

    model = Named()
    with pytest.raises(ValueError, match="layer is called with its input by keyword"):
        observe(model, lambda m: m(X), {"layer": model.layer}, lambda *seen: None)
    assert not model.layer._forward_hooks
