"""Weights drawn from a distribution under a budget of bits."""

import copy
import os

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import quantize_
from bigmodel_ext.compress.quantize._rounding import Block, EntropyConstrained, Nearest, Unbiased, noise, rounded
from bigmodel_ext.formats import coded
from drawn import X, config, correlated, mlp, run
from torch import nn


def nearest_at(weight, bits):
    """Peer: one step for the layer, round to nearest, the same coder, the step tuned to `bits` coded bits/weight."""
    low, high = weight.std() / 1000, weight.std() * 8
    for _ in range(25):
        step = (low * high).sqrt()
        q = (weight / step).round().clamp(-127, 127).to(torch.int8)
        low, high = (step, high) if coded.encode(q).numel() * 8 > bits * q.numel() else (low, step)
    return q.float() * step


class TestRounding:
    ROWS = 20000

    def repeated(self, fed_back=True):
        """The same eight weights in every row, so that rows are independent draws."""
        torch.manual_seed(1)
        weight = torch.randn(1, 8)
        moment = correlated(64, 8).T @ correlated(64, 8) / 64 if fed_back else None
        return weight, Block.of(weight.expand(self.ROWS, 8).clone(), moment)

    @pytest.mark.parametrize("fed_back", [True, False])
    @pytest.mark.parametrize("step", [0.3, 2.5])
    def test_the_mean_is_the_weight(self, fed_back, step):
        weight, block = self.repeated(fed_back)
        steps = torch.full((self.ROWS,), step)
        drawn = rounded(block, steps, Unbiased(noise(3, "a", (8, self.ROWS)))).double() * step
        sigma = drawn.std(0) / self.ROWS**0.5
        assert (sigma > 0).all()
        assert ((drawn.mean(0) - weight[0]).abs() < 5 * sigma).all()
        fixed = rounded(block, steps, Nearest()).double() * step
        assert ((fixed.mean(0) - weight[0]).abs() > 5 * sigma).any(), "the bound would not notice a bias"

    def test_two_neighbours_without_feedback(self):
        weight, block = self.repeated(fed_back=False)
        q = rounded(block, torch.full((self.ROWS,), 0.7), Unbiased(noise(3, "a", (8, self.ROWS))))
        low = (weight[0] / 0.7).floor()
        assert ((q == low) | (q == low + 1)).all()
        share = (q == low + 1).double().mean(0)
        p = (weight[0] / 0.7 - low).double()
        assert ((share - p).abs() < 5 * (p * (1 - p) / self.ROWS).sqrt() + 1e-9).all()

    def test_feedback_lowers_the_error_of_the_output(self):
        weight, moment = torch.randn(32, 64), X.T @ X / len(X)
        fed, plain = Block.of(weight, moment), Block.of(weight, None)
        steps = torch.full((32,), 0.25)
        draw = Unbiased(noise(0, "a", (64, 32)))
        error = [fed.distortion(rounded(block, steps, draw), steps) for block in (fed, plain)]
        assert error[0] < 0.2 * error[1]
        measured = ((rounded(fed, steps, draw) * 0.25 - weight) @ X.T).square().sum() / len(X)
        assert error[0] == pytest.approx(float(measured), rel=1e-3)
        by_cost = (fed.cost.double().sum() * 32 * 0.25**2 / 6).item()
        assert error[0] == pytest.approx(by_cost, rel=0.3), "step^2 / 6 for each weight, times its cost"

    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_gibbs_frequencies(self, temperature):
        weight, block = self.repeated(fed_back=False)
        step, price = 0.5, 0.05
        bits = (torch.arange(-127, 128).abs() * 0.8 + 1.0).float()
        rule = EntropyConstrained(bits, price, temperature, noise(5, "b", (8, self.ROWS)))
        q = rounded(block, torch.full((self.ROWS,), step), rule)
        for k in range(8):
            low = int((weight[0, k] / step).floor())
            near = sorted({low - 1, low, low + 1, low + 2, 0})
            cost = torch.tensor([(float(weight[0, k]) - v * step) ** 2 + price * float(bits[v + 127]) for v in near])
            wanted = torch.softmax(-cost.double() / temperature, 0)
            share = torch.tensor([(q[:, k] == v).double().mean() for v in near])
            assert ((share - wanted).abs() < 5 * (wanted * (1 - wanted) / self.ROWS).sqrt() + 1e-6).all()

    def test_thresholds_lower_rate_and_distortion_together(self):
        """At equal entropy the entropy-constrained choice has less error than the nearest grid point."""
        torch.manual_seed(0)
        weight = torch.randn(128, 128)
        block = Block.of(weight, None)
        step = 2.2
        steps = torch.full((128,), step)
        q = rounded(block, steps, Nearest())
        counts = torch.bincount(q.flatten().long() + 127, minlength=255) + 0.01
        finer = torch.full((128,), step * 0.92)
        rule = EntropyConstrained(-(counts / counts.sum()).log2(), 0.4, 0.0, None)
        constrained = rounded(block, finer, rule)
        assert coded.entropy(constrained) < coded.entropy(q)
        assert block.distortion(constrained, finer) < block.distortion(q, steps)


class TestBudget:
    @pytest.mark.parametrize("bits", [2.0, 3.5, 5.0])
    @pytest.mark.parametrize("loop", [run, None])
    def test_the_budget_is_used_and_kept(self, bits, loop):
        model = mlp()
        weights = sum(m.weight.numel() for m in model if isinstance(m, nn.Linear))
        report = quantize_(model, config(bits), loop)
        used = sum(row.figures["coded bytes"] for row in report.layers) * 8 / weights
        assert 0.96 * bits < used <= bits
        for row in report.layers:
            layer = model.get_submodule(row.fqn)
            assert type(layer) is bm.nn.Int8Linear
            q = layer.weight_q
            assert row.figures["entropy"] * q.numel() == pytest.approx(coded.entropy(q))
            share = torch.bincount(q.flatten().int() + 128).double() / q.numel()
            assert row.figures["entropy"] <= float(-(share[share > 0] * share[share > 0].log2()).sum()) + 1e-9
            assert row.figures["bits/weight"] * q.numel() / 8 == row.figures["coded bytes"]

    def test_coded_size_is_within_two_percent_of_the_entropy(self):
        model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
        for layer in model[::2]:
            nn.init.normal_(layer.weight)  # even ones have no frequencies to code by
        figures = [row.figures for row in quantize_(model, config(3.0)).layers]
        entropy = sum(f["entropy"] * n for f, n in zip(figures, (256 * 256, 64 * 256), strict=True))
        assert entropy <= 8 * sum(f["coded bytes"] for f in figures) <= 1.02 * entropy

    def test_files_take_what_the_report_says(self, tmp_path):
        model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
        others = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name.endswith("bias"))
        bm.save_model(model, tmp_path / "before")
        report = quantize_(model, config(3.0))
        bm.save_model(model, tmp_path / "after")
        before, after = (os.path.getsize(tmp_path / name) for name in ("before", "after"))
        said = others + sum(row.figures["coded bytes"] for row in report.layers)
        assert said < after < said + 4096, "the rest is names and the plan"
        assert after < before * 4 / 32, "three bits of 32, and the rest"

    @pytest.mark.parametrize("bits", [3.0, 5.0])
    def test_less_error_than_nearest_at_the_same_size(self, bits):
        model = mlp()
        dense, y = copy.deepcopy(model), run(model)
        report = quantize_(model, config(bits), run)
        assert all(row.figures["unbiased"] == 1.0 for row in report.layers)
        assert all(row.figures["distortion"] < 0.8 * row.figures["nearest"] for row in report.layers)
        ours, peer = copy.deepcopy(dense), copy.deepcopy(dense)
        used = 8 * sum(row.figures["coded bytes"] for row in report.layers)
        used /= sum(m.weight.numel() for m in dense if isinstance(m, nn.Linear))
        with torch.no_grad():
            for fqn in report.converted:
                ours.get_submodule(fqn).weight.copy_(model.get_submodule(fqn).weight)
                weight = peer.get_submodule(fqn).weight
                weight.copy_(nearest_at(weight, used))
        error = [(run(m) - y).square().sum().item() for m in (ours, peer)]
        assert error[0] < 0.5 * error[1]

    def test_layers_that_matter_more_get_finer_steps(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
                self.b.load_state_dict(self.a.state_dict())

            def forward(self, x):
                return 10 * self.a(x) + self.b(x)

        x = torch.randn(64, 32)
        report = quantize_(Two(), config(4.0), lambda m: m(x))
        ratio = report["b"].figures["step"] / report["a"].figures["step"]
        assert ratio == pytest.approx(10.0, rel=0.1), "step ~ 1 / sqrt(gain): equal slopes of distortion over rate"
        plain = quantize_(Two(), config(4.0))
        assert plain["a"].figures["step"] == plain["b"].figures["step"]

    def test_auto_is_unbiased_only_where_that_costs_nothing(self):
        flags = {}
        for rounding in ("auto", "unbiased", "entropy"):
            report = quantize_(mlp(), config(4.0, rounding=rounding))
            flags[rounding] = {row.figures["unbiased"] for row in report.layers}
            ratio = [row.figures["distortion"] / row.figures["nearest"] for row in report.layers]
            assert all(1.6 < r < 2.4 for r in ratio) if rounding == "unbiased" else all(r < 1.05 for r in ratio)
        assert flags == {"auto": {0.0}, "unbiased": {1.0}, "entropy": {0.0}}
        white = torch.randn(4096, 64)
        report = quantize_(nn.Sequential(nn.Linear(64, 64)), config(4.0), lambda m: m(white))
        assert report["0"].figures["unbiased"] == 0.0, "nothing to be won by feeding errors back"
        assert report["0"].figures["distortion"] < 1.05 * report["0"].figures["nearest"]
