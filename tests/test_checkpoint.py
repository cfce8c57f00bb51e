import json
import os

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import checkpoint
from checkpoints import assert_refused, saved
from layers import INT8, LINEARS, Mlp, convert_all, network
from safetensors import safe_open
from torch import nn


def rewrite(path, change):
    """Apply change(header, manifest) to a file and make its checksum right again."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    manifest = json.loads(metadata["manifest"])
    change(header, manifest)
    metadata["manifest"] = json.dumps(manifest)
    metadata["checksum"] = checkpoint._checksum(metadata["manifest"])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


class TestRoundTrip:
    def test_outputs_are_equal_bit_for_bit(self, tmp_path):
        model = saved(tmp_path / "m.safetensors")
        fresh = network()
        assert bm.load_model(fresh, tmp_path / "m.safetensors") is fresh
        x = torch.randn(3, 7, 24)
        with torch.no_grad():
            assert torch.equal(fresh(x), model(x))
        assert [type(m) for m in fresh.modules()] != [type(m) for m in network().modules()]
        assert repr(fresh) == repr(model)
        model.train(), fresh.train()
        for m in (model, fresh):
            torch.manual_seed(4)
            m.y = m(x)
        assert torch.equal(model.y, fresh.y)

    @pytest.mark.parametrize("kind", LINEARS)
    @pytest.mark.parametrize("bias", [True, False])
    def test_each_layer(self, tmp_path, kind, bias):
        layer = LINEARS[kind](bias=bias)
        saved(tmp_path / "m", nn.Sequential(layer))
        fresh = nn.Sequential(nn.Linear(layer.in_features, layer.out_features, bias=bias))
        bm.load_model(fresh, tmp_path / "m")
        for name, tensor in layer.state_dict().items():
            assert torch.equal(fresh[0].state_dict()[name], tensor), name
        assert type(fresh[0]) is type(layer)
        again = nn.Sequential(type(layer)(layer.in_features, layer.out_features, bias))
        bm.load_model(again, tmp_path / "m")
        assert torch.equal(again[0].weight, layer.weight)

    @pytest.mark.parametrize("order", ["fuse first", "quantize first"])
    def test_fused_blocks(self, tmp_path, order):
        model = nn.Sequential(Mlp(16), nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2)))
        steps = [bm.fuse_dropout_, lambda m: bm.quantize_(m, INT8)]
        for step in steps if order == "fuse first" else steps[::-1]:
            step(model)
        saved(tmp_path / "m", model)
        fresh = nn.Sequential(Mlp(16), nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5)))
        bm.load_model(fresh, tmp_path / "m")
        x = torch.randn(2, 16)
        assert repr(fresh) == repr(model)
        assert torch.equal(fresh.eval()(x), model.eval()(x))

    def test_a_block_that_is_the_model(self, tmp_path):
        model = bm.fuse_dropout_(Mlp(16)).eval()
        saved(tmp_path / "m", model)
        fresh = bm.load_model(Mlp(16).eval(), tmp_path / "m")
        x = torch.randn(2, 16)
        assert torch.equal(fresh(x), model(x))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtypes(self, tmp_path, dtype):
        if dtype == torch.float64:
            model, fresh = nn.Sequential(nn.Linear(3, 4)).double(), nn.Sequential(nn.Linear(3, 4)).double()
        else:
            model, fresh = convert_all(network()).to(dtype), network().to(dtype)
        saved(tmp_path / "m", model)
        bm.load_model(fresh, tmp_path / "m")
        for name, tensor in model.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], tensor), name

    def test_tied_tensors_are_stored_once_and_stay_tied(self, tmp_path):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.head = nn.Embedding(50, 40), nn.Linear(40, 50, bias=False)
                self.head.weight = self.embed.weight

        model, fresh = Tied(), Tied()
        saved(tmp_path / "m", model)
        assert os.path.getsize(tmp_path / "m") < 1.5 * 50 * 40 * 4
        bm.load_model(fresh, tmp_path / "m")
        assert fresh.head.weight is fresh.embed.weight
        assert torch.equal(fresh.head.weight, model.head.weight)
        model.head.weight = nn.Parameter(torch.zeros(50, 40))
        saved(tmp_path / "m", model)
        assert_refused(tmp_path / "m", "are one tensor in the model and two different ones in the file", Tied())

    def test_shared_modules_views_and_empty_tensors(self, tmp_path):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                base = torch.arange(12.0)
                self.register_buffer("a", base[:8])
                self.register_buffer("b", base[4:].view(2, 4).T)
                self.register_buffer("empty", torch.empty(0, 3))
                self.register_buffer("scalar", torch.tensor(True))
                self.one = nn.Linear(4, 4)
                self.two = self.one

        model = bm.quantize_(Odd(), INT8)
        saved(tmp_path / "m", model)
        fresh = Odd()
        fresh.a.zero_()
        bm.load_model(fresh, tmp_path / "m")
        assert fresh.one is fresh.two
        for name, tensor in model.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], tensor), name

    def test_any_safetensors_reader_can_read_it(self, tmp_path):
        model = saved(tmp_path / "m")
        state = model.state_dict()
        with safe_open(tmp_path / "m", framework="pt") as file:
            manifest = json.loads(file.metadata()["manifest"])
            assert set(manifest["tensors"]) == set(state)
            for name, (stored, _) in manifest["tensors"].items():
                assert torch.equal(file.get_tensor(stored), state[name]), name

    def test_trainable_or_not_is_taken_from_the_fresh_model(self, tmp_path):
        saved(tmp_path / "m")
        fresh = network().requires_grad_(False)
        bm.load_model(fresh, tmp_path / "m")
        new = {"0.2.bias", "1.drop1.bias"}  # parameters that the fresh model did not have
        assert {name for name, p in fresh.named_parameters() if p.requires_grad} == new


class TestWhatDoesNotFit:
    """Files that are whole but wrong: their checksums are right."""

    @pytest.fixture
    def path(self, tmp_path):
        saved(tmp_path / "m")
        return tmp_path / "m"

    def test_version(self, path):
        rewrite(path, lambda header, manifest: header["__metadata__"].update(version="2"))
        assert_refused(path, "its version is '2', this release reads version '1'")

    def test_plan_that_is_malformed(self, path):
        def entry(**changed):
            def change(header, manifest):
                manifest["plan"] = [e | changed if e["kind"] == "int8_linear" else e for e in manifest["plan"]]

            return change

        original = path.read_bytes()
        for change, match in [
            (entry(kind="lambda"), "unknown kind of conversion"),
            (entry(kind=["int8_linear"]), "unknown kind of conversion"),
            (entry(fqn="no.such"), "the model has no module 'no.such'"),
            (entry(fqn=""), "can't become int8_linear: it is a Sequential"),
            (lambda h, m: m["plan"].append(m["plan"][-1]), "names '4' twice"),
            (entry(extra=1), "has the fields"),
            (entry(in_features=-3), "in_features is -3"),
            (entry(in_features=True), "in_features is True"),
            (entry(in_features=10**30), f"and 40x{10**30} in the file"),
            (entry(bias=0), "bias is 0"),
            (entry(bias=False), "has tensors that the model has not|lacks tensors of the model"),
            (lambda h, m: m.update(plan={}), "the plan is not a list"),
            (lambda h, m: m.update(plan=[7]), "unknown kind of conversion: 7"),
            (lambda h, m: m.update(more=1), "manifest is malformed"),
            (lambda h, m: m["tensors"].update(x="y"), "manifest is malformed at 'x'"),
            (lambda h, m: m.update(plan=[]), "lacks tensors of the model"),
            (lambda h, m: m.update(plan=m["plan"][1:]), "4|0|lacks|has tensors"),
        ]:
            path.write_bytes(original)
            rewrite(path, change)
            assert_refused(path, match)

    @pytest.mark.parametrize(
        ("kind", "field", "value", "match"),
        [
            ("sparse_linear", "panel", 0, "panel must be in"),
            ("sparse_linear", "panel", 257, "panel must be in"),
            ("sparse_linear", "panel", 16, "crow is torch.int32"),
            ("sparse_linear", "stored", 2**60, "at most 960 entries can be stored"),
            ("int8_sparse_linear", "stored", 2**60, "at most 288 entries can be stored"),
            ("sparse_linear", "stored", 3, "is torch.* in the file and .* in the model"),
            ("block_sparse_linear", "blocksize", 8, "blocksize must be 16, 32 or 64, got 8"),
            ("block_sparse_linear", "stored", 2**60, "at most 6 blocks can be stored"),
            ("block_sparse_linear", "blocksize", 32, "at most 2 blocks can be stored, got 3"),
            ("block_sparse_linear", "stored", 2, "is torch.* in the file and .* in the model"),
            ("semi_sparse_linear", "in_features", 52, "is 24x48 in the model and 24x52 in the file"),
            ("fused_dropout", "p", 1.5, r"p must be in \[0, 1\], got 1.5"),
            ("fused_dropout", "activation", "__class__", "activation must be one of"),
            ("fused_dropout", "dtype", "load", "num_features is .* and dtype 'load'"),
            ("fused_block", "chains", [], "has the chains"),
            ("fused_block", "chains", [1], "is not an object: 1"),
            ("fused_block", "chains", [{"dropout": 1}], "has the fields"),
        ],
    )
    def test_fields(self, path, kind, field, value, match):
        def change(header, manifest):
            next(e for e in manifest["plan"] if e["kind"] == kind)[field] = value

        rewrite(path, change)
        assert_refused(path, match)

    def test_tensors_missing_extra_and_misshapen(self, path):
        original = path.read_bytes()
        for change, match in [
            (lambda h, m: m["tensors"].pop("4.bias"), "it has unexpected tensors: 4.bias"),
            (lambda h, m: m["tensors"].update({"z": m["tensors"]["4.bias"]}), "has tensors that the model has not: z"),
            (lambda h, m: m["tensors"].update({"z": ["nowhere", ""]}), "it lacks the tensors nowhere"),
            (lambda h, m: h["4.bias"].update(shape=[2, 5]), "'4.bias' is damaged"),
            (lambda h, m: h["4.weight_q"].update(dtype="U8"), "'4.weight_q' is damaged"),
        ]:
            path.write_bytes(original)
            rewrite(path, change)
            assert_refused(path, match)

    def test_another_model_or_dtype(self, path):
        assert_refused(path, r"is torch\.float32 .* in the file and torch\.bfloat16", network().to(torch.bfloat16))
        assert_refused(path, "40x24 in the file|40x20 in the model|20", network(width=20))
        wider = network()
        wider.append(nn.Linear(3, 3))
        assert_refused(path, r"lacks tensors of the model: 5\.bias, 5\.weight", wider)
        other = network()
        other[4] = nn.Conv1d(7, 7, 1)
        assert_refused(path, "'4' can't become int8_linear: it is a Conv1d", other)

        class Branching(Mlp):
            def forward(self, x):
                return super().forward(x) if x.numel() else x

        changed = network()
        changed[1] = Branching(24)
        assert_refused(path, "'1' can't be fused as it was when saved", changed)
        with pytest.raises(ValueError, match=r"on the meta device: call model\.to_empty"):
            bm.load_model(network().to("meta"), path)

    @pytest.mark.parametrize(
        ("name", "change", "match"),
        [
            ("0.3.crow", lambda t: t.flip(0), "crow must run from 0|crow must not decrease"),
            ("0.3.col", lambda t: t + 100, "col reaches beyond"),
            ("0.3.col", lambda t: t * 0, "col must increase"),
            ("1.fc2.col", lambda t: t + 100, "col reaches beyond"),
        ],
    )
    def test_indices_that_do_not_hold_together(self, tmp_path, name, change, match):
        model = convert_all(network())
        fqn, _, buffer = name.rpartition(".")
        layer = model.get_submodule(fqn)
        setattr(layer, buffer, change(getattr(layer, buffer)))
        saved(tmp_path / "m", model)
        assert_refused(tmp_path / "m", match)

    def test_a_model_whose_loading_raises_is_restored(self, path):
        class Picky(nn.BatchNorm1d):
            def _load_from_state_dict(self, *args):
                super()._load_from_state_dict(*args)
                raise RuntimeError("too picky")

        fresh = network()
        fresh[3] = Picky(7)
        assert_refused(path, "too picky", fresh)


def test_what_is_frozen_is_not_saved_but_kept(tmp_path):
    """A frozen weight does not freeze the bias beside it."""
    fresh = nn.Sequential(nn.Linear(8, 4))
    fresh[0].weight.requires_grad_(False)
    bm.save_model(bm.quantize_(nn.Sequential(nn.Linear(8, 4)), INT8), tmp_path / "m")
    assert bm.load_model(fresh, tmp_path / "m")[0].bias.requires_grad
