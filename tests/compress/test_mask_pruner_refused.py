"""What MaskPruner refuses, and that the model is then as it was."""

import pytest
import torch
from bigmodel_ext.compress.prune import MaskedHeads, MaskPruner
from torch import nn


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"importance": "l1"}, "importance must be one of magnitude"),
            ({"importance": "wanda"}, "importance 'wanda' needs a forward_loop"),
            ({"granularity": "row"}, "granularity must be one of weight, 1x4, 2:4, neuron, channel, head, got 'row'"),
            ({"pruning_ratio": 1.0}, r"pruning_ratio must be in \[0, 1\), got 1.0"),
            ({"pruning_ratio": float("nan")}, r"pruning_ratio must be in \[0, 1\), got nan"),
            ({"pruning_ratio_dict": {"0": -0.5}}, r"pruning_ratio_dict\['0'\] must be in \[0, 1\), got -0.5"),
            ({"pruning_ratio_dict": {"conv": 0.5}}, "pruning_ratio_dict: the model has no 'conv'"),
            ({"pruning_ratio_dict": {"1": 0.5}}, "pruning_ratio_dict: 1 is or holds none of the layers"),
            ({"ignored_layers": ["fc"]}, "ignored_layers: the model has no 'fc'"),
            ({"ignored_layers": [nn.Linear(2, 2)]}, "ignored_layers: the model has no such Linear"),
            ({"ignored_layers": [""]}, "no layer with a weight is left to be pruned"),
            ({"max_pruning_ratio": 0.0}, r"max_pruning_ratio must be in \(0, 1\], got 0.0"),
            ({"granularity": "channel", "round_to": 0}, "round_to must be at least 1, got 0"),
            ({"round_to": 8}, "round_to is for neurons, channels and heads, got 8 with 'weight'"),
            ({"iterative_steps": 0}, "iterative_steps must be at least 1, got 0"),
            ({"granularity": "2:4", "pruning_ratio": 0.7}, "granularity '2:4' always prunes 0.5 in one step"),
            ({"granularity": "head"}, "heads belong to granularity 'head', got None with 'head'"),
            ({"heads": {"4": 2}}, "heads belong to granularity 'head'"),
            ({"granularity": "head", "heads": {"4": 5}}, "4 has 24 columns, which 5 heads can't share evenly"),
            (
                {"granularity": "head", "heads": {"4": MaskedHeads(8, ("4",))}},
                "4 has 10 rows, which don't fit 8 heads of 3",
            ),
        ],
    )
    def test_arguments(self, cnn, arguments, message):
        with pytest.raises(ValueError, match=message):
            MaskPruner(cnn, **arguments)

    def test_types(self, cnn):
        with pytest.raises(TypeError, match="pruning_ratio must be a number in"):
            MaskPruner(cnn, pruning_ratio="half")
        with pytest.raises(TypeError, match=r"heads: 'o' must be an nn.Linear of the model, got NoneType"):
            MaskPruner(cnn, granularity="head", heads={"o": 2})

    @pytest.mark.parametrize("global_pruning", [False, True])
    def test_an_emptied_layer_is_named_and_nothing_changes(self, cnn, global_pruning):
        before = {name: value.clone() for name, value in cnn.state_dict().items()}
        pruner = MaskPruner(cnn, granularity="channel", pruning_ratio=0.95, global_pruning=global_pruning)
        with pytest.raises(ValueError, match=r"pruning_ratio 0.95.* would empty [02]: all [86] channels would go"):
            pruner.step()
        assert all(torch.equal(before[name], value) for name, value in cnn.state_dict().items())
        assert pruner.masks == {}

    def test_a_cap_below_the_ratio(self, cnn):
        pruner = MaskPruner(cnn, pruning_ratio=0.6, global_pruning=True, max_pruning_ratio=0.5)
        with pytest.raises(ValueError, match=r"max_pruning_ratio 0.5 lets 336 of 672 units go, pruning_ratio 0.6 asks"):
            pruner.step()

    def test_nan(self, cnn):
        with torch.no_grad():
            cnn[0].weight[0, 0, 0, 0] = float("nan")
        before = cnn[4].weight.detach().clone()
        with pytest.raises(ValueError, match="1 of 216 magnitude scores of 0 are NaN"):
            MaskPruner(cnn).step()
        assert torch.equal(cnn[4].weight, before)
