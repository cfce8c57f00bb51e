"""Heads that are declared, and what StructuredPruner refuses, with the model as it was."""

import sys

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.prune import Heads, StructuredPruner
from shrinkable import assert_untouched, fingerprint
from torch import nn
from torch.nn import functional as F

NAN = torch.tensor(torch.nan)


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
