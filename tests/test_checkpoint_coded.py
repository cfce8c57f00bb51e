"""Entropy-coded weights in a file: really smaller, bit for bit the same, refused when damaged."""

import copy
import os
import subprocess
import sys

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config, quantize_
from bigmodel_ext.formats import coded
from checkpoints import assert_refused, saved
from layers import INT8
from test_checkpoint import rewrite
from test_checkpoint_files import TestDamage as _Damage
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 64), nn.Linear(64, 10)).eval()


def coded_net(bits=4.0):
    model = net()
    quantize_(model, ProbabilisticInt8Config(bits, rows=()))
    return model


def uneven(shape, dtype, spread=3.0):
    values = torch.randn(shape) * spread * torch.rand(shape[0], *[1] * (len(shape) - 1))
    return values.round().clamp(-128, 127).to(torch.int8).view(dtype)


class TestStream:
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
    @pytest.mark.parametrize("shape", [(1, 1), (1,), (7,), (3, 5), (64, 3, 3, 3), (300, 40), (40, 300), (5000, 4)])
    @pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 90.0])
    def test_round_trip(self, shape, dtype, spread):
        tensor = uneven(shape, dtype, spread)
        stream = coded.encode(tensor)
        assert torch.equal(coded.decode(stream, dtype, shape), tensor)
        assert torch.equal(coded.encode(tensor.clone()), stream)
        assert coded.entropy(tensor) / 8 <= stream.numel()

    def test_extremes_and_chunks(self, monkeypatch):
        ends = torch.tensor([[-128, 127, 0, -1], [127, 127, -128, 0]], dtype=torch.int8)
        assert torch.equal(coded.decode(coded.encode(ends), torch.int8, [2, 4]), ends)
        tensor = uneven((90, 30), torch.int8)
        whole = coded.encode(tensor)
        monkeypatch.setattr(coded, "_CHUNK", 100)
        assert torch.equal(coded.decode(whole, torch.int8, tensor.shape), tensor), "the order does not hang on chunks"
        assert torch.equal(coded.encode(tensor), whole)

    def test_few_floats_bit_for_bit(self):
        values = torch.tensor([1.5, 0.0, -0.0, torch.nan, torch.inf, 1e-42]).repeat(50)
        again = coded.decode(coded.encode(values), torch.float32, values.shape)
        assert torch.equal(again.view(torch.int32), values.view(torch.int32))
        assert coded.encode(torch.full((1000,), 0.25)).numel() < 16
        with pytest.raises(ValueError, match="at most 256 values, got 300"):
            coded.encode(torch.arange(300.0))
        assert not coded.can(torch.arange(300.0))
        with pytest.raises(TypeError, match=r"can be coded, got torch\.int64"):
            coded.encode(torch.ones(2, dtype=torch.int64))

    def test_rows_or_columns_of_different_spread_cost_their_own_entropy(self):
        rows = (torch.randn(256, 256) * torch.rand(256, 1).square() * 20).round().to(torch.int8)
        share = torch.bincount(rows.flatten().int() + 128).double() / rows.numel()
        mixture = float(-(share[share > 0] * share[share > 0].log2()).sum()) * rows.numel()
        for tensor in (rows, rows.T.contiguous()):
            assert coded.entropy(tensor) < 0.9 * mixture
            assert coded.entropy(tensor) <= 8 * coded.encode(tensor).numel() <= 1.02 * coded.entropy(tensor)

    @pytest.mark.parametrize("values", [False, True])
    def test_damage_never_does_more_than_raise_value_errors(self, values):
        tensor = torch.tensor([0.5, 1.0, 2.0]).repeat(40) if values else uneven((20, 12), torch.int8)
        stream, refused = coded.encode(tensor), []
        flipped = []
        for i in range(len(stream)):
            for mask in (0x01, 0x80, 0xFF):
                flipped.append(stream.clone())
                flipped[-1][i] ^= mask
        for data in (*flipped, *(stream[:i] for i in range(len(stream))), torch.cat([stream, stream])):
            try:
                result = coded.decode(data, tensor.dtype, tensor.shape)
                assert result.shape == tensor.shape
                assert result.dtype == tensor.dtype
            except ValueError as error:
                refused.append(str(error))
        assert len(refused) > len(stream)
        assert all("malformed stream" in message for message in refused)
        with pytest.raises(ValueError, match="malformed stream"):
            coded.decode(torch.cat([stream, torch.ones(8, dtype=torch.uint8)]), tensor.dtype, tensor.shape)
        for dtype, shape in ((torch.int64, [2]), (torch.float32 if not values else torch.int8, tensor.shape)):
            with pytest.raises(ValueError, match="malformed stream"):
                coded.decode(stream, dtype, shape)

    def test_a_short_stream_can_not_ask_for_many_tables(self):
        """Each of 2 KiB, from 4 bytes."""
        table = bytes([1, 0, 254, 1])
        head = bytes([0, 0, 128, 2, 192, 132, 61])  # flags, lowest symbol, 256 symbols, 1000000 classes
        stream = torch.frombuffer(bytearray(head + table * 1000), dtype=torch.uint8)
        with pytest.raises(ValueError, match="malformed stream: classes exceeds 16"):
            coded.decode(torch.cat([stream] * 260), torch.int8, [4, 4])


class TestFile:
    def test_its_size(self, tmp_path):
        sizes, model = {}, coded_net(3.0)
        for coding in ("rans", "none"):
            for layer in (model[0], model[3], model[4]):
                layer.coding = coding
            saved(tmp_path / coding, model)
            sizes[coding] = os.path.getsize(tmp_path / coding)
        weights = sum(model[i].weight_q.numel() for i in (0, 3, 4))
        assert sizes["none"] - sizes["rans"] > 0.9 * weights * (8 - 3.0) / 8
        report = quantize_(net(), ProbabilisticInt8Config(3.0, rows=()))
        assert sum(row.figures["coded bytes"] for row in report.layers) <= weights * 3.0 / 8

    def test_bit_for_bit_in_a_fresh_process(self, tmp_path):
        model, x = coded_net(), torch.randn(2, 3, 8, 8)
        saved(tmp_path / "m", model)
        torch.save({"x": x, "y": model(x), "q": model[3].weight_q}, tmp_path / "wanted")
        code = f"""
import sys, torch, bigmodel_ext as bm
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_checkpoint_coded import net
wanted = torch.load({str(tmp_path / "wanted")!r})
model = bm.load_model(net(), {str(tmp_path / "m")!r})
assert torch.equal(model[3].weight_q, wanted["q"])
assert torch.equal(model(wanted["x"]), wanted["y"])
assert [m.coding for m in model if hasattr(m, "coding")] == ["rans"] * 3
print("equal")
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.stdout.strip() == "equal", result.stderr

    def test_changed_weights_are_what_is_coded(self, tmp_path):
        model = coded_net()
        state = model.state_dict()
        state["3.weight_q"] = uneven((64, 288), torch.int8, 9.0)
        model.load_state_dict(state)
        saved(tmp_path / "m", model)
        again = bm.load_model(net(), tmp_path / "m")
        assert torch.equal(again[3].weight_q, state["3.weight_q"])
        bm.save_model(copy.deepcopy(again), tmp_path / "n")
        assert (tmp_path / "n").read_bytes() == (tmp_path / "m").read_bytes(), "still coded, and the same"

    @pytest.mark.parametrize("layer", ["Int8Linear", "Int8SparseLinear"])
    def test_any_int8_layer(self, tmp_path, layer):
        linear = nn.Linear(50, 64)
        with torch.no_grad():
            linear.weight.pow_(5)
            linear.weight[:, 8:24] = 0.0
        model = nn.Sequential(getattr(bm.nn, layer).from_float(linear))
        plain = saved(tmp_path / "plain", model)[0].state_dict()
        model[0].coding = "rans"
        saved(tmp_path / "m", model)
        assert os.path.getsize(tmp_path / "m") < os.path.getsize(tmp_path / "plain")
        again = bm.load_model(nn.Sequential(nn.Linear(50, 64)), tmp_path / "m")
        for name, tensor in plain.items():
            assert torch.equal(again[0].state_dict()[name], tensor), name

    def test_what_would_not_get_smaller_or_is_tied_is_stored_once_as_it_is(self, tmp_path):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.one = nn.Linear(24, 24)
                self.two = self.one

        model = bm.quantize_(nn.Sequential(Twice(), nn.Linear(2, 2)), INT8)
        model[0].one.coding = model[1].coding = "rans"
        saved(tmp_path / "m", model)
        again = bm.load_model(nn.Sequential(Twice(), nn.Linear(2, 2)), tmp_path / "m")
        assert again[0].one is again[0].two
        assert torch.equal(again[0].one.weight_q, model[0].one.weight_q)
        assert again[1].coding == "rans"

    def test_codings(self):
        layer = bm.nn.Int8Linear(4, 4)
        with pytest.raises(ValueError, match="coding of Int8Linear must be one of none, rans, got 'zip'"):
            layer.coding = "zip"
        with pytest.raises(ValueError, match="coding of SparseLinear must be one of none, got 'rans'"):
            bm.nn.SparseLinear(4, 4).coding = "rans"

    def test_without_the_coder(self, tmp_path, monkeypatch):
        model = saved(tmp_path / "m", coded_net())
        fresh = net()
        monkeypatch.setitem(sys.modules, "constriction", None)
        for action in (lambda: bm.save_model(model, tmp_path / "n"), lambda: bm.load_model(fresh, tmp_path / "m")):
            with pytest.raises(ImportError, match=r"pip install 'bigmodel_ext\[compress\]'"):
                action()
        assert os.listdir(tmp_path) == ["m"]
        assert repr(fresh) == repr(net())


class TestMalformed:
    @pytest.fixture
    def path(self, tmp_path):
        saved(tmp_path / "m", coded_net())
        return tmp_path / "m"

    KEY = "3.weight_q:rans"

    def test_manifests(self, path):
        def entry(**changed):
            return lambda h, m: m["coded"][self.KEY].update(changed)

        original = path.read_bytes()
        for change, match in [
            (lambda h, m: m.update(coded=[]), "its manifest is malformed"),
            (lambda h, m: m["coded"].update({self.KEY: 1}), f"its manifest is malformed at '{self.KEY}'"),
            (lambda h, m: m["coded"].update(other=m["coded"][self.KEY]), "its manifest is malformed at 'other'"),
            (lambda h, m: m["coded"].pop(self.KEY), "is damaged"),
            (entry(more=1), "its manifest is malformed at"),
            (entry(shape=[64, -288]), "its manifest is malformed at"),
            (entry(shape=[64, 2**40]), "is more than the model could hold"),
            (entry(shape=[288, 64]), "is damaged|malformed stream"),
            (entry(shape=[64, 287]), "is damaged|malformed stream"),
            (entry(dtype="F32"), "it does not hold torch.float32"),
            (entry(dtype="I64"), "can't hold"),
            (entry(dtype=[1]), "can't hold"),
            (entry(digest=""), f"tensor '{self.KEY}' is damaged"),
            (lambda h, m: m["plan"][1].update(coding="zip"), "coding of Int8Linear must be one of"),
            (lambda h, m: m["plan"][1].update(coding=1), "coding is 1"),
        ]:
            path.write_bytes(original)
            rewrite(path, change)
            assert_refused(path, match, net())

    def test_streams_that_claim_too_much_together(self, path):
        room = 4 * sum(t.numel() for t in net().state_dict().values())
        rewrite(path, lambda h, m: m["coded"]["4.weight_q:rans"].update(shape=[1, room]))
        assert_refused(path, r"'4\.weight_q:rans' of shape .* is more than the model could hold", net())


class TestEveryByte(_Damage):
    """What holds for every file, for one with streams."""

    @staticmethod
    def fresh():
        return nn.Sequential(nn.Linear(24, 12)).eval()

    @pytest.fixture
    def small(self, tmp_path):
        torch.manual_seed(0)
        model = self.fresh()
        quantize_(model, ProbabilisticInt8Config(6.0, rows=()))
        bm.save_model(model, tmp_path / "small")
        data = (tmp_path / "small").read_bytes()
        assert b"0.weight_q:rans" in data
        return data

    @pytest.mark.parametrize("flip", [0x01, pytest.param(0xFF, marks=pytest.mark.long)])
    def test_every_byte_flipped(self, small, tmp_path, flip):
        super().test_every_byte_flipped(small, tmp_path, flip)

    test_foreign_files = test_it_never_unpickles = None
