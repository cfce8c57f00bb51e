"""Physical removal: the smaller model is the one with the same units silenced."""

import pytest
import torch
from bigmodel_ext.compress.prune import StructuredPruner
from shrinkable import MODELS, calibration, groups_of, inputs, make, silence
from torch import nn

NAN = torch.tensor(torch.nan)


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
