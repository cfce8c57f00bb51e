"""Probabilistic quantization of whole models: which layers, what is reported, what is refused."""

import copy
import sys

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config, quantize_
from bigmodel_ext.compress.quantize._rate import Target, quantized
from bigmodel_ext.compress.quantize._rounding import Block
from drawn import X, config, correlated, mlp, run
from torch import nn


class TestLayers:
    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("loop", [True, False])
    def test_convolutions(self, groups, loop):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
        x = torch.randn(4, 4, 8, 8)
        y = model(x).detach()
        report = quantize_(model, config(6.0), (lambda m: m(x)) if loop else None)
        assert [type(m) for m in model[::2]] == [bm.nn.Int8Conv2d] * 2
        assert float((model(x).detach() - y).norm() / y.norm()) < 0.1
        assert all(row.figures["entropy"] < 6.5 for row in report.layers)

    def test_weights_that_are_zero_constant_or_far_out(self):
        model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 16))
        with torch.no_grad():
            model[0].weight[3, 5] = 60.0  # its row needs a coarser grid than the others
            model[1].weight.zero_()
            model[2].weight.fill_(0.125)
        want = model[0].weight.clone()
        quantize_(model, config(6.0, rounding="unbiased"))
        step = model[0].weight_scale
        assert step[3] > 10 * step[0]
        assert ((model[0].weight - want).abs() <= step[:, None] * 1.0001).all(), "nothing is clipped"
        assert not model[1].weight.any()
        assert (model[2].weight - 0.125).abs().max() <= model[2].weight_scale[0]

    def test_errors_fed_back_do_not_run_into_the_ends_of_the_grid(self):
        """Weights that are nearly at the end already: without coarser steps what is fed back would be clipped."""
        block = Block.of(1.0 - 0.02 * torch.rand(32, 64), X.T @ X / len(X))
        target = Target("a", [block], 1.0, True, 0.0, 0)
        made = quantized(target, target.sensitivity(block) ** 0.5 / 126)  # q = 126, if nothing moves
        assert 100 < made.q.abs().max() < 127

    def test_other_dtypes_and_filters(self):
        model = mlp().bfloat16()
        report = quantize_(model, config(5.0), lambda m: m(X.bfloat16()), lambda m, fqn: fqn != "4")
        assert report.converted == ("0", "2")
        assert type(model[4]) is nn.Linear
        assert model(X.bfloat16()).dtype == torch.bfloat16

    def test_layers_kept_dense_take_no_bits(self, figures):
        model = mlp()
        figures.given = {("Int8Linear", 1): 2.0, ("Int8Linear", 128): 0.5}
        with pytest.warns(UserWarning, match="no layer was converted"):
            report = quantize_(model, ProbabilisticInt8Config(4.0))
        assert not report.converted
        assert all("kept dense" in row.reason for row in report.layers)

    def test_seed_and_threads(self):
        def made(seed, threads, loop=run):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            torch.rand(threads)  # the global generator plays no part
            model = copy.deepcopy(base)
            quantize_(model, config(4.0, seed=seed), loop)
            return torch.cat([model[i].weight_q.flatten() for i in (0, 2, 4)])

        base = mlp(128)
        x = correlated(600, 128)
        seen = []
        first = made(1, 1, lambda m: m(x))
        assert torch.equal(first, made(1, 2, lambda m: (seen.append(torch.get_num_threads()), m(x))))
        assert seen[0] == 1, "sums are shared among threads in no other way"
        assert not torch.equal(first, made(2, 1, lambda m: m(x)))
        torch.set_num_threads(1)


def assert_refused(error, match, model, *args):
    before = copy.deepcopy(model)
    with pytest.raises(error, match=match):
        quantize_(model, *args)
    assert repr(model) == repr(before)
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestRefused:
    @pytest.mark.parametrize(
        ("kw", "error", "match"),
        [
            ({"bits_per_weight": 0}, ValueError, r"bits_per_weight must be in \(0, 8\], got 0"),
            ({"bits_per_weight": 9.0}, ValueError, "got 9.0"),
            ({"bits_per_weight": float("nan")}, ValueError, "got nan"),
            ({"bits_per_weight": "4"}, TypeError, "bits_per_weight must be a number, got '4'"),
            ({"rounding": "floor"}, ValueError, "rounding must be one of auto, unbiased, entropy, got 'floor'"),
            ({"temperature": -1.0}, ValueError, r"temperature must be in \[0, 100\], got -1.0"),
            ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
            ({"rows": 4}, TypeError, "rows must be a tuple"),
            ({"bits": 4}, TypeError, "unexpected keyword"),
        ],
    )
    def test_configs(self, kw, error, match):
        with pytest.raises(error, match=match):
            ProbabilisticInt8Config(**kw)

    def test_models_and_data(self):
        assert_refused(ValueError, "forward_loop never reached 0, 2, 4", mlp(), config(), lambda m: None)
        assert_refused(ValueError, r"bits_per_weight=0\.01 can't be met", mlp(), config(0.01))
        bad = mlp()
        with torch.no_grad():
            bad[2].weight[0, 0] = torch.nan
        assert_refused(ValueError, "the weight of '2' holds NaN or infinity", bad, config())
        assert_refused(ValueError, "are not finite", mlp(), config(), lambda m: m(X * torch.inf))
        assert_refused(KeyboardInterrupt, "^stop$", mlp(), config(), _interrupted)

    def test_without_the_coder(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "constriction", None)
        assert_refused(ImportError, r"need the package constriction \(pip install", mlp(), config())


def _interrupted(model):
    model(X)
    raise KeyboardInterrupt("stop")
