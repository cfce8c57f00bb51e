import copy
import sys

import bigmodel_ext as bm
import pytest
import torch
import torch_pruning as tp
from bigmodel_ext.compress.prune import Heads, StructuredPruner
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits
from shrinkable import MODELS, assert_untouched, fingerprint, inputs, make
from torch import nn
from torch.nn import functional as F

NAN = torch.tensor(torch.nan)


def calibration(name):
    batches = [inputs(name) for _ in range(4)]

    def loop(model):
        for x in batches:
            model(x)

    return loop


def groups_of(model, name, **arguments):
    return StructuredPruner(model, inputs(name), **arguments)._graph.groups


def silence(model, groups, share):
    """Nothing reads some units of each group any more (the same ones of each of its blocks). Returns the number by
    group."""
    counts = {}
    for group in groups.values():
        per_block = group.size // group.blocks
        gone = torch.randperm(per_block)[: int(share * per_block)].tolist()
        units = [b * per_block + u for b in range(group.blocks) for u in gone]
        counts[group.name] = len(units)
        for s in group.slices:
            if s.role == "in":
                weight = model.get_submodule(s.fqn).weight.data
                weight[:, [i for u in units for i in s.index[u]]] = 0.0
    return counts


class TestRemoval:
    @pytest.mark.parametrize("kv_groups", [True, False])
    @pytest.mark.parametrize("name", MODELS)
    def test_units_that_nothing_reads_go_and_the_outputs_stay(self, name, kv_groups):
        if not kv_groups and name != "grouped-query":
            pytest.skip("no heads are shared")
        model, x = make(name), inputs(name)
        groups = {n: g for n, g in groups_of(model, name, kv_groups=kv_groups).items() if g.exact}
        counts = silence(model, groups, 0.5)
        wanted, sizes = model(x), [p.numel() for p in model.parameters()]
        ignored = [n for n in groups_of(model, name, kv_groups=kv_groups) if n not in groups]
        pruner = StructuredPruner(
            model,
            x,
            "reconstruction",
            0.5,
            ignored_layers=ignored,
            forward_loop=calibration(name),
            kv_groups=kv_groups,
            compensate=False,
        )
        done = pruner.step()
        assert {n: before - after for n, (_, before, after) in done.groups.items()} == counts
        assert torch.allclose(model(x), wanted, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in model.parameters()) == done.parameters[1] < 0.8 * sum(sizes)

    @pytest.mark.parametrize("importance", ["magnitude", "wanda", "taylor", "reconstruction"])
    def test_each_importance_finds_them(self, importance):
        model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
        x = torch.randn(64, 12)
        with torch.no_grad():
            dead = torch.randperm(32)[:16]
            model[2].weight[:, dead] = 0.0
            model[0].weight[dead] *= 0.1
            model[4].weight[:, :16] = 0.0
            model[2].weight[:16] *= 0.1
        wanted = model(x)

        def loop(m):
            out = m(x)
            if importance == "taylor":
                out.square().mean().backward()

        StructuredPruner(model, x, importance, forward_loop=loop, compensate=False).step()
        assert [layer.out_features for layer in (model[0], model[2], model[4])] == [16, 16, 5]
        assert torch.allclose(model(x), wanted, atol=1e-5)
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("importance", ["activation", "apoz"])
    def test_neurons_that_say_nothing_go(self, importance):
        model, x = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)), torch.randn(64, 12)
        with torch.no_grad():
            quiet = torch.randperm(32)[:16]
            model[0].weight[quiet] *= 1e-4
            model[0].bias[quiet] = -0.01
        wanted = model(x)
        StructuredPruner(model, x, importance, forward_loop=lambda m: m(x)).step()
        assert torch.allclose(model(x), wanted, atol=1e-5)

    @pytest.mark.parametrize("name", MODELS)
    def test_attributes_follow_and_it_trains_on(self, name):
        model, x = make(name), inputs(name)
        done = StructuredPruner(model, x, granularity=("channel", "neuron", "head", "width")).step()
        assert all(after == before // 2 for _, before, after in done.groups.values())
        for module in model.modules():
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            if isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            if isinstance(module, nn.BatchNorm2d):
                assert {t.shape for t in (module.weight, module.running_var)} == {(module.num_features,)}
            if isinstance(module, nn.GroupNorm):
                assert module.weight.shape == (module.num_channels,)
            if isinstance(module, nn.LayerNorm):
                assert module.weight.shape == module.normalized_shape
        model.train()
        model(x).float().square().mean().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())

    def test_heads_of_each_kind(self):
        vit, gqa, even = make("fused qkv"), make("grouped-query"), make("grouped-query")
        StructuredPruner(vit, inputs("fused qkv"), granularity=["head"]).step()
        StructuredPruner(gqa, inputs("grouped-query"), granularity=["head"]).step()
        StructuredPruner(even, inputs("grouped-query"), granularity=["head"], kv_groups=False).step()
        assert vit.blocks[1].attention.heads == 2
        assert vit.blocks[1].attention.qkv.weight.shape == (3 * 2 * 8, 32)
        shapes = [
            [tuple(layer.weight.shape) for layer in (m.blocks[0].attention.q, m.blocks[0].attention.v)]
            for m in (gqa, even)
        ]
        assert shapes == [[(16, 32), (4, 32)], [(16, 32), (8, 32)]]

    def test_query_heads_go_evenly_from_each_group(self):
        """Though all of the first group matter more than any of the second."""
        model = make("grouped-query")
        attention = model.blocks[0].attention
        with torch.no_grad():
            attention.q.weight[:16] *= 10.0
            attention.proj.weight[:, :16] *= 10.0
        first = attention.q.weight.detach().clone()
        pruner = StructuredPruner(model, inputs("grouped-query"), granularity=["head"], kv_groups=False)
        pruner.step()
        (entry,) = [e for e in pruner.plan if e["fqn"] == "blocks.0.attention.q"]
        ((_, kept),) = entry["tensors"]["weight"]["kept"]
        assert sum(i < 16 for i in kept) == 8
        assert torch.equal(attention.q.weight, first[kept])

    def test_tied_embeddings_stay_tied(self):
        model = make("grouped-query")
        model.head.weight = model.embed.weight
        StructuredPruner(model, inputs("grouped-query"), granularity=["width"]).step()
        assert model.head.weight is model.embed.weight
        assert model.embed.weight.shape == (40, 16)
        assert (model.embed.embedding_dim, model.head.in_features) == (16, 16)

    def test_gradients_frozen_parameters_and_modes_are_kept(self):
        model, x = make("fused qkv").train(), inputs("fused qkv")
        model.blocks[0].fc1.weight.requires_grad_(False)
        model.blocks[0].eval()
        model(x).sum().backward()
        grad = model.blocks[1].fc1.weight.grad.clone()
        modes = [m.training for m in model.modules()]
        pruner = StructuredPruner(model, x, granularity=["neuron"])
        pruner.step()
        kept = {e["fqn"]: e["tensors"]["weight"]["kept"] for e in pruner.plan}
        assert torch.equal(model.blocks[1].fc1.weight.grad, grad[kept["blocks.1.fc1"][0][1]])
        assert [p.requires_grad for p in model.blocks[0].fc1.parameters()] == [False, True]
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_hooks for m in model.modules())

    def test_an_inplace_activation_does_not_hide_its_layer(self):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
        assert StructuredPruner(model, torch.randn(2, 3, 8)).step().groups == {"0": ("neuron", 16, 8)}


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


class Twisted(nn.Module):
    """Attention whose layers have names of its own, so that its heads are not seen."""

    def __init__(self, width=16, count=4):
        super().__init__()
        self.count = count
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.inward(x).view(batch, tokens, 3, self.count, -1).permute(2, 0, 3, 1, 4)
        return self.outward(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Fixed(Twisted):
    """One that reads a width besides."""

    def __init__(self):
        super().__init__()
        self.width = 16

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.inward(x).view(batch, tokens, 3, self.count, -1).permute(2, 0, 3, 1, 4)
        return self.outward(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, self.width))


class TestDeclaredHeads:
    def test_a_module_with_names_of_its_own(self):
        model, x = nn.Sequential(nn.LayerNorm(16), Fixed()), torch.randn(2, 5, 16)
        layout = Heads("inward", "outward", 4, attributes={"count": "heads", "width": "width"})
        StructuredPruner(model, x, heads={model[1]: layout}).step()
        assert (model[1].count, model[1].width, model[1].outward.in_features) == (2, 8, 8)
        assert model(x).shape == (2, 5, 16)

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            (Heads("inward", "outward", 3), "'1': 3 heads and 3 key/value heads of 16 features need"),
            (Heads("nothing", "outward", 4), "'1' has no nn.Linear 'nothing'"),
            (Heads("inward", "outward", 4, attributes={"width": "heads"}), "1.width is 16, expected 4"),
        ],
    )
    def test_wrong_layouts(self, layout, message):
        model = nn.Sequential(nn.LayerNorm(16), Fixed())
        before = fingerprint(model)
        with pytest.raises(ValueError, match=message):
            StructuredPruner(model, torch.randn(2, 5, 16), heads={"1": layout})
        assert_untouched(model, before)

    def test_heads_refuses(self):
        with pytest.raises(ValueError, match="heads must be a multiple of kv_heads, got 6 and 4"):
            Heads("qkv", "out", 6, 4)
        with pytest.raises(ValueError, match=r"attributes must name one of heads, .* got 'dims'"):
            Heads("qkv", "out", 4, attributes={"count": "dims"})

    @pytest.mark.parametrize("attributes", [{}, {"count": "heads"}])
    def test_sizes_not_declared_are_found_out_before_the_model_is_touched(self, attributes):
        model = nn.Sequential(nn.LayerNorm(16), Fixed())
        before = fingerprint(model)
        pruner = StructuredPruner(
            model, torch.randn(2, 5, 16), heads={"1": Heads("inward", "outward", 4, attributes=attributes)}
        )
        with pytest.raises(ValueError, match="pruning 2 of 4 heads of '1' does not work: the model then raises"):
            pruner.step()
        assert_untouched(model, before)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        self.layer(x)
        raise RuntimeError("no way through")


class TestRefused:
    def net(self):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pruning_ratio": 1.0}, r"in \[0, 1\), got 1.0: it would leave none of the 6 neurons of '0'"),
            ({"pruning_ratio_dict": {"0": 1.5}}, "got 1.5: it would leave none of the 6 neurons of '0'"),
            ({"pruning_ratio": -0.1}, "got -0.1"),
            ({"ignored_layers": ["nowhere"]}, "ignored_layers names 'nowhere', which is not in the model"),
            ({"ignored_layers": [nn.Linear(1, 1)]}, "ignored_layers names a Linear, which is not in the model"),
            ({"pruning_ratio_dict": {"2": 0.5}}, "names '2', which can't be pruned: its outputs are the model's"),
            ({"pruning_ratio_dict": {"9": 0.5}}, "pruning_ratio_dict names '9', which is not in the model"),
            ({"ignored_layers": ["0"]}, "nothing in Sequential can be pruned: .*0: it is ignored"),
            ({"importance": "guess"}, "importance must be one of .*, got 'guess'"),
            ({"importance": "wanda"}, "importance 'wanda' needs a forward_loop"),
            ({"compensate": True}, "compensate=True needs a forward_loop"),
            ({"granularity": ["filter"]}, r"granularity must be some of .*, got \['filter'\]"),
            ({"round_to": 0}, "round_to must be at least 1, got 0"),
            ({"iterative_steps": 0}, "iterative_steps must be at least 1, got 0"),
            ({"max_pruning_ratio": 0.0}, r"max_pruning_ratio must be in \(0, 1\], got 0.0"),
            ({"target_macs": 1.0}, r"target_macs must be in \(0, 1\), got 1.0"),
            ({"target_macs": 0.5, "pruning_ratio": 0.5}, "give pruning_ratio or target_macs, got 0.5 and 0.5"),
            ({"example_inputs": torch.randn(2, 5)}, "dependencies of Sequential can't be traced .*RuntimeError: mat1"),
        ],
    )
    def test_arguments(self, arguments, message):
        model = self.net().train()
        before = fingerprint(model)
        with pytest.raises(ValueError, match=message):
            StructuredPruner(model, **{"example_inputs": torch.randn(2, 4), **arguments})
        assert_untouched(model, before)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_macs": 0.01}, "6 multiply-accumulates are left when everything is pruned .* asks for 0"),
            ({"importance": "wanda", "forward_loop": lambda m: None}, "never reached"),
            ({"importance": "reconstruction", "forward_loop": lambda m: m(NAN.expand(2, 4))}, "not all finite"),
            ({"compensate": True, "forward_loop": lambda m: m[0](torch.ones(2, 4))}, "forward_loop gave 2 no data"),
            ({"importance": lambda group: NAN.expand(6)}, r"importance gave \[6\] for '0', expected 6 finite"),
            ({"importance": lambda group: torch.ones(5)}, r"importance gave \[5\] for '0'"),
        ],
    )
    def test_steps(self, arguments, message):
        model = self.net().train()
        pruner = StructuredPruner(model, torch.randn(1, 4), **arguments)
        before = fingerprint(model)
        with pytest.raises(ValueError, match=message):
            pruner.step()
        assert_untouched(model, before)

    def test_a_model_that_can_not_be_traced(self):
        model = Raises()
        before = fingerprint(model)
        with pytest.raises(ValueError, match=r"dependencies of Raises can't be traced .RuntimeError: no way through"):
            StructuredPruner(model, torch.randn(2, 4))
        assert_untouched(model, before)

    def test_what_the_graph_gets_wrong_is_found_before_the_model_is_touched(self):
        """It takes the queries' places for the values'."""
        model, x = nn.Sequential(Twisted(), nn.Linear(16, 3)), torch.randn(2, 5, 16)
        before = fingerprint(model)
        pruner = StructuredPruner(model, x)
        with pytest.raises(
            ValueError, match=r"pruning 24 of 48 neurons of '0.inward' does not work: .*declare its attention"
        ):
            pruner.step()
        assert_untouched(model, before)

    def test_converted_layers(self):
        model = self.net()
        bm.quantize_(model, bm.Int8DynamicActivationInt8WeightConfig(rows=()))
        with pytest.raises(ValueError, match=r"nothing in Sequential can be pruned: .*conversions come after pruning"):
            StructuredPruner(model, torch.randn(2, 4))

    def test_an_error_halfway_leaves_the_model_as_it_was(self, monkeypatch):
        model = self.net()
        pruner = StructuredPruner(model, torch.randn(2, 4))
        before, calls = fingerprint(model), []

        def fail(self, held, name, value, was=bm._pruned.Surgery._set):
            calls.append(name)
            was(self, held, name, value)
            if len(calls) == 3 and self._cuts[0][0] in model:
                raise MemoryError

        monkeypatch.setattr("bigmodel_ext.compress.prune.structured.pruner.verify", lambda *a: None)
        monkeypatch.setattr(bm._pruned.Surgery, "_set", fail)
        with pytest.raises(MemoryError):
            pruner.step()
        assert_untouched(model, before)

    def test_without_torch_pruning(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        with pytest.raises(ImportError, match="needs torch-pruning: pip install 'bigmodel_ext\\[compress\\]'"):
            StructuredPruner(self.net(), torch.randn(2, 4))

    def test_not_a_module(self):
        with pytest.raises(TypeError, match=r"model must be an nn.Module, got int"):
            StructuredPruner(3, torch.randn(2, 4))
