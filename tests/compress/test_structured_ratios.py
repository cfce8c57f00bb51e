"""How much of each group goes, and what the layers that stay make up for."""

import copy

import pytest
import torch
import torch_pruning as tp
from bigmodel_ext.compress.prune import StructuredPruner
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits
from shrinkable import MODELS, inputs, make
from torch import nn

NAN = torch.tensor(torch.nan)


class TestHowMuch:
    def counts(self, done):
        return {name: after for name, (_, _, after) in done.groups.items()}

    def net(self):
        return nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 3))

    def test_steps_end_at_the_ratio(self):
        model = self.net()
        pruner = StructuredPruner(model, torch.randn(2, 8), pruning_ratio=0.75, iterative_steps=3)
        seen = [self.counts(pruner.step()) for _ in range(3)]
        assert seen == [{"2": 18, "0": 30}, {"2": 12, "0": 20}, {"2": 6, "0": 10}]
        with pytest.raises(ValueError, match="all 3 steps are done"):
            pruner.step()

    def test_ratios_of_layers_ignored_layers_and_multiples(self):
        model = self.net()
        pruner = StructuredPruner(
            model, torch.randn(2, 8), pruning_ratio=0.4, pruning_ratio_dict={"0": 0.75}, round_to=8
        )
        assert self.counts(pruner.step()) == {"2": 16, "0": 8}
        pruner = StructuredPruner(model, torch.randn(2, 8), ignored_layers=[model[0]])
        assert self.counts(pruner.step()) == {"2": 8}

    def test_globally_units_go_where_they_cost_least(self):
        model = self.net()
        with torch.no_grad():
            model[0].weight[:36] *= 1e-3
            model[2].weight[:, :36] *= 1e-3
        done = StructuredPruner(model, torch.randn(2, 8), pruning_ratio=0.5, global_pruning=True).step()
        assert self.counts(done) == {"0": 8, "2": 24}

    def test_no_more_than_max_pruning_ratio_goes(self):
        model = self.net()
        with torch.no_grad():
            model[0].weight[:36] *= 1e-3
        done = StructuredPruner(
            model, torch.randn(2, 8), pruning_ratio=0.5, global_pruning=True, max_pruning_ratio=0.6
        ).step()
        assert min(self.counts(done).items())[1] >= 16
        assert sum(self.counts(done).values()) == 32

    @pytest.mark.parametrize("global_pruning", [True, False])
    @pytest.mark.parametrize("name", ["grouped", "grouped-query"])
    def test_target_macs_is_met_closely(self, name, global_pruning):
        model, x = make(name), inputs(name)
        before = tp.utils.count_ops_and_params(model, x)[0]
        done = StructuredPruner(
            model, x, target_macs=0.5, global_pruning=global_pruning, granularity=("channel", "neuron", "head", "width")
        ).step()
        assert 0.4 < done.macs[1] / done.macs[0] <= 0.5
        assert tp.utils.count_ops_and_params(model, x)[0] < 0.56 * before  # it counts biases and norms too

    def test_target_macs_in_steps(self):
        model = self.net()
        pruner = StructuredPruner(model, torch.randn(2, 8), target_macs=0.25, iterative_steps=2, global_pruning=True)
        first, second = pruner.step(), pruner.step()
        assert 0.4 < first.macs[1] / first.macs[0] <= 0.5
        assert 0.2 < second.macs[1] / first.macs[0] <= 0.25

    def test_importances_of_torch_pruning_choose_as_there(self):
        ours, theirs, x = make("grouped"), make("grouped"), inputs("grouped")
        importance = tp.importance.GroupMagnitudeImportance()
        StructuredPruner(ours, x, importance, 0.5).step()
        tp.pruner.BasePruner(theirs, x, importance, pruning_ratio=0.5, ignored_layers=[theirs.head]).step()
        for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(mine, other), name

    def test_importances_of_torch_pruning_rank_heads(self):
        model = make("grouped-query")
        with torch.no_grad():
            model.blocks[0].attention.proj.weight[:, :16] *= 0.01
        kept = model.blocks[0].attention.proj.weight[:, 16:].clone()
        StructuredPruner(
            model, inputs("grouped-query"), tp.importance.GroupMagnitudeImportance(), granularity=["head"]
        ).step()
        assert torch.equal(model.blocks[0].attention.proj.weight, kept)


class TestLeastSquares:
    def test_neurons_that_others_can_replace_cost_nothing(self):
        """Half the neurons are sums of others: the weights that read them are moved there, to the same outputs."""
        model, x = (
            nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(12, 4)).double(),
            torch.randn(256, 6).double(),
        )
        wanted = model(x).detach()
        plain = copy.deepcopy(model)
        arguments = {"forward_loop": lambda m: m(x), "pruning_ratio_dict": {"1": 0.5}, "ignored_layers": ["0"]}
        StructuredPruner(model, x, "reconstruction", **arguments).step()
        StructuredPruner(plain, x, "reconstruction", compensate=False, **arguments).step()
        assert model[1].out_features == 6
        spread = float((wanted - wanted.mean(0)).square().sum().detach())
        assert float((model(x) - wanted).square().sum().detach()) < 1e-3 * spread
        assert float((plain(x) - wanted).square().sum().detach()) > 0.05 * spread

    @pytest.mark.parametrize("name", MODELS)
    def test_layers_after_pruning_come_nearer_to_what_they_gave(self, name):
        batches = [inputs(name) for _ in range(20)]
        x, errors = torch.cat(batches), []
        for compensate in (False, True):
            model = make(name)
            wanted = model(x)
            StructuredPruner(
                model,
                batches[0],
                "magnitude",
                0.3,
                compensate=compensate,
                forward_loop=lambda m: [m(b) for b in batches],
            ).step()
            error = (model(x) - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
            errors.append(float(error.detach()))
        assert errors[1] < 0.6 * errors[0], errors

    def test_taylor_and_least_squares_share_a_loop(self):
        model, x = make("grouped"), inputs("grouped")
        model(x).sum().backward()
        before = model.head.weight.grad.clone()

        def loop(m):
            m(x).square().mean().backward()

        StructuredPruner(
            model, x, "taylor", forward_loop=loop, compensate=True, ignored_layers=["blocks.1.conv3"]
        ).step()
        assert torch.equal(model.head.weight.grad, before)

    def test_trained_digits_keep_their_accuracy_at_half_the_macs(self):
        data = digits.load(0)
        model = CNN(CNNConfig(16, 1))
        fit(model, data.train, CrossEntropy(), TrainConfig(4, 32, 3e-3), seed=0)
        figures = {"dense": accuracy(model, data.validation)}
        for importance in ("magnitude", "reconstruction"):
            smaller = copy.deepcopy(model)
            done = StructuredPruner(
                smaller,
                data.train.inputs[:1],
                importance,
                target_macs=0.5,
                forward_loop=lambda m: m(data.train.inputs[:512]),
            ).step()
            assert done.macs[1] <= 0.5 * done.macs[0]
            figures[importance] = accuracy(smaller, data.validation)
        assert figures["dense"] > 0.85
        assert figures["reconstruction"] > figures["dense"] - 0.15, figures
        assert figures["reconstruction"] > figures["magnitude"] + 0.3, figures
