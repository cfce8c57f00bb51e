"""MaskPruner: exact masks at each granularity and policy, which hold through training."""

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.prune import GradualPruner, MaskedHeads, MaskPruner
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit
from bigmodel_ext.train.vit import ViT, ViTConfig
from torch import nn


@pytest.fixture
def vit():
    return ViT(ViTConfig(width=32, depth=1, heads=4, mlp=48))


def zeros(model, fqn):
    return model.get_submodule(fqn).weight.detach() == 0


class TestGranularity:
    def test_weight(self, cnn):
        before = {fqn: cnn[fqn].weight.detach().clone() for fqn in (0, 2, 4)}
        pruner = MaskPruner(cnn, pruning_ratio=0.3)
        pruner.step()
        for fqn, weight in before.items():
            gone = zeros(cnn, str(fqn))
            assert int(gone.sum()) == round(0.3 * weight.numel())
            assert weight[gone].abs().max() <= weight[~gone].abs().min()
            assert torch.equal(pruner.masks[str(fqn)], ~gone)
            assert torch.equal(cnn[fqn].weight.detach()[~gone], weight[~gone])

    def test_blocks_are_those_of_sparsify(self):
        model = nn.Sequential(nn.Linear(23, 9))
        expected = bm.convert.block_mask(model[0].weight, 0.6)
        MaskPruner(model, granularity="1x4", pruning_ratio=0.6).step()
        assert torch.equal(~zeros(model, "0"), expected)

    def test_blocks_of_a_convolution_run_along_its_columns(self, cnn):
        MaskPruner(cnn, granularity="1x4", pruning_ratio=0.5, ignored_layers=["4"]).step()
        for fqn in ("0", "2"):
            flat = zeros(cnn, fqn).flatten(1)  # 27 and 36 columns
            blocks = nn.functional.pad(flat, (0, -flat.shape[1] % 4), value=True).unflatten(1, (-1, 4))
            assert int(blocks.all(-1).sum()) == round(0.5 * blocks.shape[0] * blocks.shape[1])
            padded = nn.functional.pad(flat, (0, -flat.shape[1] % 4))
            assert int(flat.sum()) == int((blocks.all(-1, keepdim=True) & padded.unflatten(1, (-1, 4)) | False).sum())

    def test_two_four(self, cnn):
        linear = cnn[4].weight.detach().clone()
        MaskPruner(cnn, granularity="2:4").step()
        assert torch.equal(~zeros(cnn, "4"), bm.convert.two_four_mask(linear))
        groups = ~zeros(cnn, "2").flatten(1).unflatten(1, (-1, 4))
        assert bool((groups.sum(-1) == 2).all())

    @pytest.mark.parametrize(("granularity", "fqn", "units"), [("neuron", "4", 10), ("channel", "0", 8)])
    def test_outputs_go_with_their_biases(self, cnn, granularity, fqn, units):
        layer = cnn.get_submodule(fqn)
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        pruner = MaskPruner(cnn, granularity=granularity, pruning_ratio=0.5)
        assert list(pruner.layers) == (["4"] if granularity == "neuron" else ["0", "2"])
        pruner.step()
        gone = zeros(cnn, fqn).flatten(1).all(1)
        assert torch.equal(gone.nonzero().flatten(), norms.argsort()[: units // 2].sort().values)
        assert torch.equal(layer.bias == 0, gone)

    def test_a_dead_neuron_goes_first_by_its_outputs(self):
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        with torch.no_grad():
            model[0].weight[1].mul_(50)  # the largest weights, but it never fires
            model[0].bias[1] = -1e4
        loop = lambda m: m(torch.randn(40, 6))  # noqa: E731
        MaskPruner(model, importance="apoz", granularity="neuron", pruning_ratio=0.25, ignored_layers=["2"],
                   forward_loop=loop).step()  # fmt: skip
        assert zeros(model, "0").all(1).tolist() == [False, True, False, False]

    def test_a_pruned_head_contributes_nothing(self, vit):
        heads = {"blocks.0.attention.proj": MaskedHeads(4, ("blocks.0.attention.qkv",))}
        with torch.no_grad():
            for start in (0, 32, 64):
                vit.blocks[0].attention.qkv.weight[start + 16 : start + 24] *= 0.01
        pruner = MaskPruner(vit, granularity="head", pruning_ratio=0.25, heads=heads)
        pruner.step()
        rows, columns = zeros(vit, "blocks.0.attention.qkv").all(1), zeros(vit, "blocks.0.attention.proj").all(0)
        assert columns.nonzero().flatten().tolist() == list(range(16, 24))
        assert torch.equal(rows, columns.repeat(3))
        assert torch.equal(vit.blocks[0].attention.qkv.bias == 0, rows)
        assert bool((vit.blocks[0].attention.proj.bias != 0).all())

    def test_a_shared_key_head_stays_while_one_of_its_query_heads_does(self):
        model = nn.ModuleDict({"q": nn.Linear(12, 16), "k": nn.Linear(12, 8), "o": nn.Linear(16, 12)})
        with torch.no_grad():
            model["q"].weight[4:12] *= 0.01  # heads 1 and 2 of four: of key heads 0 and 1
            model["o"].weight[:, 4:12] *= 0.01
        MaskPruner(model, granularity="head", pruning_ratio=0.5, heads={"o": MaskedHeads(4, ("q", "k"))}).step()
        assert zeros(model, "q").all(1).tolist() == [False] * 4 + [True] * 8 + [False] * 4
        assert not zeros(model, "k").any()
        with torch.no_grad():
            model["q"].weight[12:] *= 1e-3
        MaskPruner(model, granularity="head", pruning_ratio=0.75, heads={"o": MaskedHeads(4, ("q", "k"))}).step()
        assert zeros(model, "k").all(1).tolist() == [False] * 4 + [True] * 4


class TestPolicy:
    def test_ratios_by_name_module_and_container(self, vit):
        ratios = {"embed": 0.25, vit.head: 0.0, vit.blocks: 0.75}
        MaskPruner(vit, pruning_ratio_dict=ratios).step()
        share = {fqn: float(zeros(vit, fqn).float().mean()) for fqn in ("embed", "head", "blocks.0.fc1")}
        assert share == {"embed": 0.25, "head": 0.0, "blocks.0.fc1": 0.75}

    def test_ignored_layers_and_filter(self, vit):
        pruner = MaskPruner(
            vit, ignored_layers=[vit.blocks[0].attention, "head"], filter_fn=lambda m, fqn: fqn != "embed"
        )
        assert list(pruner.layers) == ["blocks.0.fc1", "blocks.0.fc2"]

    def test_wanda_compares_within_rows(self):
        model = nn.Sequential(nn.Linear(10, 6))
        with torch.no_grad():
            model[0].weight[0] *= 100
        x = torch.randn(30, 10)
        score = model[0].weight.detach().abs() * x.square().mean(0).sqrt()
        MaskPruner(model, importance="wanda", pruning_ratio=0.4, forward_loop=lambda m: m(x)).step()
        assert torch.equal(zeros(model, "0").sum(1), torch.full((6,), 4))
        assert bool((score[0][zeros(model, "0")[0]].max() < score[0][~zeros(model, "0")[0]].min()).all())
        MaskPruner(model, importance="wanda", per_row=False, pruning_ratio=0.5, forward_loop=lambda m: m(x)).step()
        assert int(zeros(model, "0")[0].sum()) == 4, "row 0 outweighs all others"

    def test_global_pruning_takes_where_there_is_least(self, cnn):
        with torch.no_grad():
            cnn[0].weight.mul_(1e-3)  # a layer's scale doesn't matter,
            cnn[4].weight[:, :18] *= 1e-3  # its distribution does
        pruner = MaskPruner(cnn, pruning_ratio=0.4, global_pruning=True, pruning_ratio_dict={"2": 0.1})
        pruner.step()
        taken = {fqn: int(zeros(cnn, fqn).sum()) for fqn in ("0", "2", "4")}
        assert taken["0"] + taken["4"] == round(0.4 * (216 + 240))
        assert taken["2"] == round(0.1 * 216)
        assert taken["4"] > 170
        assert 0 < taken["0"] < 20

    def test_max_pruning_ratio_caps_a_layer(self, cnn):
        with torch.no_grad():
            cnn[4].weight[:, :18] *= 1e-3
        MaskPruner(cnn, pruning_ratio=0.4, global_pruning=True, max_pruning_ratio=0.5).step()
        assert int(zeros(cnn, "4").sum()) == 120
        assert sum(int(zeros(cnn, fqn).sum()) for fqn in ("0", "2", "4")) == round(0.4 * 672)

    @pytest.mark.parametrize(("round_to", "kept"), [(None, 4), (3, 6), (8, 8), (16, 8)])
    def test_round_to_keeps_multiples(self, cnn, round_to, kept):
        MaskPruner(cnn, granularity="channel", pruning_ratio=0.5, round_to=round_to, ignored_layers=["2"]).step()
        assert int((~zeros(cnn, "0").flatten(1).all(1)).sum()) == kept

    def test_iterative_steps_add_up(self, cnn):
        pruner, gone, shares = MaskPruner(cnn, pruning_ratio=0.6, iterative_steps=3), None, []
        for _ in range(3):
            pruner.step()
            now = zeros(cnn, "4")
            assert gone is None or bool((now | ~gone).all())
            shares.append(int(now.sum()))
            gone = now
            with torch.no_grad():
                cnn[4].weight.add_(torch.randn(10, 24))  # as training that takes no notice of masks
        assert shares == [48, 96, 144]
        assert pruner.pruned["4"] == pytest.approx(0.6)
        with pytest.raises(RuntimeError, match="more often than iterative_steps, which is 3"):
            pruner.step()


def _clusters(count, inputs=16, classes=4):
    centres = torch.randn(classes, inputs, generator=torch.Generator().manual_seed(1)) * 0.7
    targets = torch.randint(classes, (count,))
    return Examples(centres[targets] + torch.randn(count, inputs), targets)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
}


class TestTraining:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_momentum_brings_nothing_back(self, optimizer):
        model, data = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), _clusters(64)
        opt = OPTIMIZERS[optimizer](model.parameters())

        def train():
            for _ in range(5):
                opt.zero_grad()
                nn.functional.cross_entropy(model(data.inputs), data.targets).backward()
                opt.step()

        train()  # momentum for all weights
        pruner = MaskPruner(model, granularity="neuron", pruning_ratio=0.5, ignored_layers=["2"])
        pruner.step()
        handle, kept = pruner.attach(opt), model[0].weight.detach().clone()
        train()
        gone = ~pruner.masks["0"]
        assert not model[0].weight[gone].any()
        assert not model[0].bias[gone[:, 0]].any()
        assert bool((model[0].weight != kept)[~gone].all()), "the others train"
        handle.remove()
        train()
        assert model[0].weight[gone].any()

    @pytest.mark.parametrize("granularity", ["weight", "1x4"])
    def test_sparse_layers_train_with_their_pattern_and_recover(self, granularity):
        model, data, test = (
            nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 4)),
            _clusters(512),
            _clusters(512),
        )
        fit(model, data, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2), seed=0)
        before = accuracy(model, test)
        MaskPruner(model, granularity=granularity, pruning_ratio=0.85).step()
        pruned = accuracy(model, test)
        pattern = [model[i].weight.detach() != 0 for i in (0, 2)]
        bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(rows=()))
        assert all(isinstance(model[i], bm.nn.SparseLinear) for i in (0, 2))
        assert [model[i].values.numel() for i in (0, 2)] == [int(kept.sum()) for kept in pattern]
        fit(model, data, CrossEntropy(), TrainConfig(epochs=15, batch_size=32, learning_rate=1e-2), seed=0)
        after = accuracy(model, test)
        assert all(torch.equal(model[i].weight != 0, kept) for i, kept in zip((0, 2), pattern, strict=True))
        assert pruned < before - 0.1, f"{before} -> {pruned}: nothing to come back from"
        assert after > before - 0.02, f"{before} -> {pruned} -> {after}"

    def test_gradual_pruning_keeps_what_pruning_at_once_loses(self):
        model, data, test = (
            nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)),
            _clusters(512),
            _clusters(512),
        )
        fit(model, data, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2), seed=0)
        before, config = accuracy(model, test), TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2)
        pruner = MaskPruner(model, granularity="neuron", pruning_ratio=0.75, ignored_layers=["2"])
        fit(model, data, CrossEntropy(), config, seed=0, on_step=GradualPruner(pruner, config.steps(512)))
        assert int(zeros(model, "0").all(1).sum()) == 48
        assert accuracy(model, test) > before - 0.02
