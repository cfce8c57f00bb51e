"""One-shot pruning with reconstruction: against exact and brute-force optima, and against magnitude."""

import contextlib
import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.calibrate import layers_of, second_moments
from bigmodel_ext.compress.prune import MaskPruner, reconstruct_, scores
from bigmodel_ext.convert import largest_mask
from bigmodel_ext.train.loop import evaluating
from hidden import hidden_inputs
from torch import nn


def _images(count):
    """Smooth, with some noise."""
    coarse = torch.randn(count, 1, 2, 2) + 0.3 * torch.randn(count, 4, 2, 2)
    return nn.functional.interpolate(coarse, size=6, mode="bilinear") + 0.1 * torch.randn(count, 4, 6, 6)


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.ReLU(), nn.Linear(16, 6))


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 4, 5),
    )  # fmt: skip


def _loop(*batches):
    return lambda model: [model(x) for x in batches]


def _zeros(model):
    return {fqn: layer.weight.detach() == 0 for fqn, layer in layers_of(model).items()}


def _missed(model, dense, x):
    with evaluating(model), evaluating(dense):
        return float((model(x) - dense(x)).square().mean())


class TestReconstruct:
    @pytest.mark.parametrize("method", ["admm", "sparsegpt"])
    @pytest.mark.parametrize("granularity", ["weight", "1x4", "2:4"])
    @pytest.mark.parametrize("kind", ["mlp", "cnn"])
    def test_masks_are_exact_and_outputs_kept(self, request, kind, granularity, method):
        model = request.getfixturevalue(kind)
        dense, plain = copy.deepcopy(model), copy.deepcopy(model)
        batches = list((hidden_inputs(256, 24, 6) if kind == "mlp" else _images(64)).chunk(4))
        held_out, ratio = batches.pop(), {} if granularity == "2:4" else {"pruning_ratio": 0.6}
        report = reconstruct_(model, _loop(*batches), granularity=granularity, method=method, **ratio)
        MaskPruner(plain, granularity=granularity, **ratio).step()
        assert [fit.fqn for fit in report.layers] == list(layers_of(model))
        for fit, (fqn, gone) in zip(report.layers, _zeros(model).items(), strict=True):
            assert fit.pruned == pytest.approx(float(gone.float().mean()))
            # a group of a convolution has its own share
            assert int(gone.sum()) == pytest.approx(int(_zeros(plain)[fqn].sum()), abs=8 if kind == "cnn" else 0)
            flat = nn.functional.pad(gone.flatten(1), (0, -gone[0].numel() % 4), value=True).unflatten(1, (-1, 4))
            blocks = flat.all(-1)  # and more where an input is dead
            assert granularity != "1x4" or int(blocks.sum()) >= round(0.6 * blocks.numel()) - 1
            assert granularity != "2:4" or int((~flat).sum(-1).max()) == 2
            assert fit.error < 0.7 * fit.magnitude_error, str(report)
        ours, theirs = _missed(model, dense, held_out), _missed(plain, dense, held_out)
        assert ours < 0.6 * theirs, f"{ours:.3g} against {theirs:.3g}"

    @pytest.mark.parametrize("granularity", ["weight", "1x4"])
    @pytest.mark.parametrize("per_row", [False, True])
    def test_ratios_are_exact_across_blocks_of_columns(self, granularity, per_row):
        model, units = nn.Sequential(nn.Linear(300, 7)), 300 if granularity == "weight" else 75
        options = {"granularity": granularity, "per_row": per_row, "pruning_ratio": 0.37}
        reconstruct_(model, _loop(hidden_inputs(400, 300, 20)), method="sparsegpt", **options)
        gone = round(0.37 * units) * 7 if per_row else round(0.37 * units * 7)
        assert int(_zeros(model)["0"].sum()) == gone * 300 // units

    def test_errors_are_shares_of_the_outputs_variance(self):
        model, x = nn.Sequential(nn.Linear(12, 5)), hidden_inputs(80, 12) + 1.0
        dense, plain = copy.deepcopy(model), copy.deepcopy(model)
        (fit,) = reconstruct_(model, _loop(x), pruning_ratio=0.5, damping=0.5).layers
        MaskPruner(plain, pruning_ratio=0.5).step()
        for pruned, error in ((model, fit.error), (plain, fit.magnitude_error)):
            lost = (dense(x) - pruned(x)).var(0, correction=0).sum() / dense(x).var(0, correction=0).sum()
            assert error == pytest.approx(lost.item(), rel=1e-3)

    def test_order_of_calls_and_ratios(self):
        class Reversed(nn.Module):
            def __init__(self):
                super().__init__()
                self.last, self.first = nn.Linear(8, 4), nn.Linear(12, 8)

            def forward(self, x):
                return self.last(self.first(x))

        model = Reversed()
        report = reconstruct_(model, _loop(hidden_inputs(60, 12)), pruning_ratio_dict={"last": 0.25, model.first: 0.75})
        assert [(fit.fqn, fit.pruned) for fit in report.layers] == [("first", 0.75), ("last", 0.25)]
        assert "first   75.0%" in str(report)

    def test_each_step_further_is_better(self, mlp):
        """Layers by themselves, then in sequence, then making up for those before them."""
        x, missed = hidden_inputs(400, 24, 6), []
        for options in ({"sequential": False}, {"match": "own"}, {"match": "dense"}):
            model = copy.deepcopy(mlp)
            reconstruct_(model, _loop(x), pruning_ratio=0.75, **options)
            missed.append(_missed(model, mlp, x))
        assert missed[2] < missed[1] < missed[0], str(missed)

    def test_means_are_kept_by_the_bias(self, mlp):
        dense, x = copy.deepcopy(mlp), hidden_inputs(300, 24) + 1.0
        reconstruct_(mlp, _loop(x), pruning_ratio=0.8)
        torch.testing.assert_close(mlp[0](x).mean(0), dense[0](x).mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mlp(x).mean(0), dense(x).mean(0), atol=1e-5, rtol=1e-4)

    def test_dead_inputs_go_first(self):
        model = nn.Sequential(nn.Linear(10, 4))
        x = hidden_inputs(50, 10)
        x[:, 3], x[:, 7] = 0.0, 2.5  # the second is constant: the bias can do what it does
        expected = model(x)
        reconstruct_(model, _loop(x), pruning_ratio=0.2)
        assert _zeros(model)["0"].all(0).nonzero().flatten().tolist() == [3, 7]
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)

    def test_nothing_pruned_changes_nothing(self, mlp):
        x = hidden_inputs(300, 24)
        expected = mlp(x)
        report = reconstruct_(mlp, _loop(x), pruning_ratio=0.0)
        torch.testing.assert_close(mlp(x), expected, atol=1e-4, rtol=1e-4)
        assert all(fit.error < 1e-6 and fit.pruned == 0.0 for fit in report.layers)

    def test_fewer_rows_than_weights(self, mlp):
        reconstruct_(mlp, _loop(torch.randn(3, 24)), pruning_ratio=0.5)
        assert all(bool(p.isfinite().all()) for p in mlp.parameters())

    def test_zeros_hold_in_training_and_in_sparse_layers(self, mlp):
        x = hidden_inputs(200, 24)
        reconstruct_(mlp, _loop(x), pruning_ratio=0.6, per_row=True)
        assert torch.equal(_zeros(mlp)["0"].sum(1), torch.full((32,), round(0.6 * 24)))
        zeros, pruner, optimizer = _zeros(mlp), MaskPruner(mlp), torch.optim.Adam(mlp.parameters())
        pruner.hold()
        pruner.attach(optimizer)
        mlp(x).square().mean().backward()
        optimizer.step()
        assert all(torch.equal(gone, _zeros(mlp)[fqn]) for fqn, gone in zeros.items())
        expected = mlp(x)
        bm.sparsify_(mlp, bm.UnstructuredSparseWeightConfig(rows=()))
        assert isinstance(mlp[0], bm.nn.SparseLinear)
        torch.testing.assert_close(mlp(x), expected)

    def test_a_shared_layer_is_seen_at_both_of_its_places(self):
        layer = nn.Linear(8, 8)
        model = nn.Sequential(layer, nn.ReLU(), layer)
        report = reconstruct_(model, _loop(hidden_inputs(100, 8)), pruning_ratio=0.5)
        assert [fit.fqn for fit in report.layers] == ["0"]
        assert report.layers[0].error < report.layers[0].magnitude_error

    def test_a_batch_that_the_model_refuses_leaves_no_trace(self):
        class Picky(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 4)

            def forward(self, x):
                hidden = self.first(x)
                if len(x) == 7:
                    raise OverflowError
                return self.last(hidden)

        def loop(model):
            for batch in (x[:7], x):
                with contextlib.suppress(OverflowError):
                    model(batch)

        model, x = Picky(), hidden_inputs(50, 8)
        other = copy.deepcopy(model)
        reconstruct_(model, loop)
        reconstruct_(other, _loop(x))
        assert torch.equal(model.first.weight, other.first.weight)

    def test_second_moments_are_those_of_calibrate(self, cnn):
        from bigmodel_ext.compress.prune.moments import own_moments

        x = torch.randn(5, 4, 6, 6)
        layers = layers_of(cnn)
        for fqn, h in second_moments(cnn, _loop(x), layers).items():
            found = own_moments(cnn, _loop(x), layers)[fqn].means(fqn, centred=False)[2]
            torch.testing.assert_close(found.float().view(h.shape), h)


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"granularity": "neuron"}, "granularity must be one of weight, 1x4, 2:4, got 'neuron'"),
            ({"method": "gptq"}, "method must be one of admm, sparsegpt, got 'gptq'"),
            ({"match": "both"}, "match must be one of dense, own, got 'both'"),
            ({"damping": 0.0}, "damping must be above 0 and finite, got 0.0"),
            ({"damping": float("nan")}, "damping must be above 0 and finite, got nan"),
            ({"pruning_ratio": 1.0}, r"pruning_ratio must be in \[0, 1\), got 1.0"),
            ({"pruning_ratio": 0.6, "granularity": "2:4"}, "granularity '2:4' always prunes 0.5"),
            ({"pruning_ratio_dict": {"1": 0.5}}, "pruning_ratio_dict: 1 is or holds none"),
            ({"pruning_ratio_dict": {"fc": 0.5}}, "pruning_ratio_dict: the model has no 'fc'"),
            ({"pruning_ratio_dict": {"2": 0.9999}}, "pruning_ratio 0.9999 would empty 2: all 512 weights would go"),
            ({"ignored_layers": ["fc"]}, "ignored_layers: the model has no 'fc'"),
            ({"filter_fn": lambda m, fqn: False}, "no layer with a weight is left to be pruned"),
        ],
    )
    def test_arguments(self, mlp, arguments, message):
        with pytest.raises(ValueError, match=message):
            reconstruct_(mlp, _loop(torch.randn(4, 24)), **arguments)

    @pytest.mark.parametrize("sequential", [False, True])
    @pytest.mark.parametrize(
        ("loop", "message"),
        [
            (lambda m: None, "forward_loop never reached 0, 2, 4"),
            (_loop(torch.empty(0, 24)), "forward_loop gave 0 0 rows"),
            (_loop(torch.full((4, 24), float("inf"))), "the inputs of 0 are NaN or infinite"),
        ],
    )
    def test_bad_data(self, mlp, loop, message, sequential):
        with pytest.raises(ValueError, match=message):
            reconstruct_(mlp, loop, sequential=sequential)

    def test_a_loop_around_the_models_call(self, mlp):
        loop = lambda m: m[4](m[:4](torch.randn(40, 24)))  # noqa: E731
        with pytest.raises(
            ValueError, match="forward_loop must call the model itself for match='dense', and reached 0"
        ):
            reconstruct_(mlp, loop)
        reconstruct_(mlp, loop, match="own")
        assert float(_zeros(mlp)["4"].float().mean()) == 0.5

    def test_half_way_the_model_stays_as_it_was(self, mlp):
        before, calls = {name: value.clone() for name, value in mlp.state_dict().items()}, []

        def loop(model):
            calls.append(1)
            model(torch.randn(40, 24))
            if len(calls) == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reconstruct_(mlp, loop)
        assert all(torch.equal(before[name], value) for name, value in mlp.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in mlp.modules())


def test_wanda_and_sparsegpt_rank_alike_where_inputs_do_not_correlate():
    """With H diagonal there is nothing to make up with: the best mask is Wanda's, the weights stay as they are."""
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    q, _ = torch.linalg.qr(torch.randn(64, 16))
    x = q * torch.rand(16).mul(3)
    expected = scores(model, {"0": model[0]}, "wanda", _loop(x))["0"]
    before = model[0].weight.detach().clone()
    reconstruct_(model, _loop(x), method="sparsegpt", per_row=True, damping=1e-9)
    stay = ~_zeros(model)["0"]
    assert torch.equal(stay, largest_mask(expected, 8))
    torch.testing.assert_close(model[0].weight.detach()[stay], before[stay], atol=1e-4, rtol=1e-3)
