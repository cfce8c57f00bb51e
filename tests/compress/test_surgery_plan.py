import copy
import json
import subprocess
import sys
from pathlib import Path

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.prune import StructuredPruner, replay_surgery, surgery_plan
from checkpoints import assert_refused
from shrinkable import MODELS, Depthwise, assert_untouched, fingerprint, inputs, make
from torch import nn

INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())
ALL = ("channel", "neuron", "head", "width")


def pruned(name, **arguments):
    model = make(name)
    StructuredPruner(model, inputs(name), **{"granularity": ALL, **arguments}).step()
    return model


def as_json(model):
    return json.loads(json.dumps(surgery_plan(model)))


def sizes(model):
    return {
        fqn: {n: v for n, v in vars(m).items() if isinstance(v, (int, tuple)) and n != "training"}
        for fqn, m in model.named_modules()
    }


class TestReplay:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_same_model_is_pruned_to_the_same_weights(self, name):
        model = pruned(name)
        again = make(name)
        assert replay_surgery(again, as_json(model)) is again
        assert sizes(again) == sizes(model)
        for (key, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(value, other), key
        x = inputs(name)
        assert torch.equal(again(x), model(x))
        assert surgery_plan(again) == surgery_plan(model)

    def test_steps_add_up_to_one_plan(self):
        model = make("grouped")
        pruner = StructuredPruner(model, inputs("grouped"), pruning_ratio=0.5, iterative_steps=2)
        pruner.step()
        first = as_json(model)
        pruner.step()
        again = replay_surgery(make("grouped"), as_json(model))
        assert [e["fqn"] for e in first] == [e["fqn"] for e in as_json(model)]
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key

    def test_a_model_that_is_so_already_stays_and_another_is_refused(self):
        model = pruned("grouped")
        before = fingerprint(model)
        replay_surgery(model, as_json(model))
        assert_untouched(model, before)
        other = make("grouped")
        StructuredPruner(other, inputs("grouped"), pruning_ratio=0.25).step()
        before = fingerprint(other)
        with pytest.raises(ValueError, match="is pruned already, and differently"):
            replay_surgery(other, as_json(model))
        assert_untouched(other, before)

    def test_copies_parts_and_wholes_keep_the_record(self, tmp_path):
        model = pruned("fused qkv", granularity=("head", "neuron"))
        assert surgery_plan(copy.deepcopy(model)) == surgery_plan(model)
        assert {e["fqn"] for e in surgery_plan(nn.Sequential(model))} == {"0." + e["fqn"] for e in surgery_plan(model)}
        bm.save_model(model.blocks[1], tmp_path / "m")
        block, x = bm.load_model(make("fused qkv", 1).blocks[1], tmp_path / "m"), torch.randn(2, 4, 32)
        assert torch.equal(block(x), model.blocks[1](x))


def _change(**values):
    def change(plan):
        entry = next(e for e in plan if e["fqn"] == "depthwise")
        entry.update(values)

    return change


def _kept(dim, indices):
    return {"weight": {"shape": [16, 1, 3, 3], "kept": [[dim, indices]]}}


MALFORMED = [
    (lambda plan: plan.append(3), "unknown kind of conversion: 3"),
    (lambda plan: plan.append(dict(plan[0])), "the plan prunes 'stem' twice"),
    (_change(fqn="nowhere"), "the model has no module 'nowhere', which the plan prunes"),
    (_change(tensors=[]), r"plan entry 'depthwise': tensors is \[\]"),
    (_change(extra=1), "plan entry 'depthwise' has the fields"),
    (_change(tensors={"weight": {"shape": [16, 1, 3, 3]}}), r"has the fields \['shape'\]"),
    (_change(tensors=_kept(0, "all")), "tensor 'weight' is malformed"),
    (_change(tensors=_kept(0, [0, -1])), "tensor 'weight' is malformed"),
    (_change(tensors=_kept(0, [True])), "tensor 'weight' is malformed"),
    (_change(tensors=_kept(0, [3, 2])), r"kept indices of dimension 0 must rise within \[0, 16\)"),
    (_change(tensors=_kept(0, [16])), r"kept indices of dimension 0 must rise within \[0, 16\)"),
    (_change(tensors=_kept(0, [])), r"kept indices of dimension 0 must rise within \[0, 16\)"),
    (_change(tensors=_kept(4, [0])), "depthwise.weight has no dimension 4"),
    (_change(tensors={"nothing": {"shape": [4], "kept": []}}), "depthwise.nothing is None in the model"),
    (_change(attributes={"groups": 8}), r"attribute 'groups' is 8, expected \[before, after\]"),
    (_change(attributes={"groups": [16, "8"]}), r"attribute 'groups' is \[16, '8'\]"),
    (_change(attributes={"groups": [16, 0]}), "depthwise.groups can't be 0"),
    (_change(attributes={"groups": [16, [8]]}), r"depthwise.groups can't be \[8\]"),
    (_change(attributes={"groups": [12, 8]}), "depthwise.groups is 16 in the model, the plan has 12 before pruning"),
    (_change(attributes={"forward": [16, 8]}), "'depthwise' .Conv2d. has no size 'forward' of its own"),
    (_change(attributes={"_parameters": [16, 8]}), "has no size '_parameters' of its own"),
    (_change(attributes={"padding_mode": [16, 8]}), "has no size 'padding_mode' of its own"),
]


class TestRefused:
    @pytest.mark.parametrize(("change", "message"), MALFORMED)
    def test_malformed_plans(self, change, message):
        plan = as_json(pruned("depthwise"))
        change(plan)
        fresh = make("depthwise")
        before = fingerprint(fresh)
        with pytest.raises(ValueError, match=message):
            replay_surgery(fresh, plan)
        assert_untouched(fresh, before)

    def test_private_attributes_are_not_set(self):
        plan = as_json(pruned("depthwise"))
        _change(attributes={"_hidden": [16, 8]})(plan)
        fresh = make("depthwise")
        fresh.depthwise._hidden = 16
        with pytest.raises(ValueError, match="has no size '_hidden' of its own"):
            replay_surgery(fresh, plan)

    def test_no_list(self):
        with pytest.raises(ValueError, match=r"the plan is not a list: \{\}"):
            replay_surgery(make("depthwise"), {})

    def test_another_model(self, tmp_path):
        model = pruned("depthwise")
        bm.save_model(model, tmp_path / "m")
        wide = Depthwise(16)
        before = fingerprint(wide)
        with pytest.raises(ValueError, match=r"stem.bias is \[16\] in the model, the plan prunes \[8\]"):
            bm.load_model(wide, tmp_path / "m")
        assert_untouched(wide, before)
        assert_refused(tmp_path / "m", "the model has no module '.*', which the plan prunes")

    def test_tensors_that_do_not_fit_undo_the_pruning(self, tmp_path):
        model = pruned("fused qkv")
        model.head = nn.Linear(16, 3)  # as many inputs as are left, and no record
        bm.save_model(model, tmp_path / "m")
        fresh = make("fused qkv")
        before = fingerprint(fresh)
        with pytest.raises(ValueError, match=r"head.weight is torch.float32 \[3, 16\] in the file and"):
            bm.load_model(fresh, tmp_path / "m")
        assert_untouched(fresh, before)
        assert surgery_plan(fresh) == []

    def test_one_tensor_in_two_places_must_be_cut_in_both(self):
        plan = as_json(pruned("fused qkv", granularity=["neuron"]))
        fresh = make("fused qkv")
        fresh.blocks[1].fc1.weight = fresh.blocks[0].fc1.weight
        with pytest.raises(
            ValueError, match=r"blocks.\d.fc1.weight and blocks.\d.fc1.weight are one tensor, and would be"
        ):
            replay_surgery(fresh, plan)
        with pytest.raises(ValueError, match="the same tensor, would not"):
            replay_surgery(fresh, [e for e in plan if e["fqn"].startswith("blocks.0")])


class TestComposition:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("convert", ["nothing", "int8", "sparse", "int8 sparse"])
    def test_pruned_and_converted(self, tmp_path, name, convert):
        model, x = pruned(name), inputs(name)
        if convert == "int8":
            bm.quantize_(model, INT8)
        elif convert == "sparse":
            bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(0.5, rows=()))
        elif convert == "int8 sparse":
            bm.sparsify_(model, bm.Int8BlockSparseWeightConfig(0.5, rows=()))
        model = copy.deepcopy(model)
        with torch.no_grad():
            wanted = model(x)
            bm.save_model(model, tmp_path / "m")
            fresh = bm.load_model(make(name, seed=1), tmp_path / "m")
            assert torch.equal(fresh(x), wanted)
        assert repr(fresh) == repr(model)
        bm.save_model(fresh, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()

    def test_pruned_fused_and_quantized(self, tmp_path):
        def net():
            return nn.Sequential(
                nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 24), nn.GELU(), nn.Linear(24, 4)
            )

        model, x = net().eval(), torch.randn(3, 24)
        StructuredPruner(model, x).step()
        bm.fuse_dropout_(model)
        bm.quantize_(model, INT8)
        bm.fuse_activation_(model)
        with torch.no_grad():
            bm.save_model(model, tmp_path / "m")
            fresh = bm.load_model(net().eval(), tmp_path / "m")
            assert torch.equal(fresh(x), model(x))
        assert repr(fresh) == repr(model)

    def test_pruning_after_fusing_is_refused(self):
        model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))
        bm.fuse_dropout_(model)
        with pytest.raises(ValueError, match="belongs to a FusedDropout: prune before converting"):
            StructuredPruner(model, torch.randn(3, 24))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from shrinkable import make
import bigmodel_ext as bm
import pickle
def refuse(*a, **k):
    raise SystemExit("something was unpickled")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
def watch(event, args):
    if event == "pickle.find_class":
        refuse()
sys.addaudithook(watch)
model = bm.load_model(make(sys.argv[2], seed=1), sys.argv[3])
assert "torch_pruning" not in sys.modules
bm.save_model(model, sys.argv[3] + ".again")
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
x = load_file(sys.argv[4])["x"]
save_file({"y": model(x).detach()}, sys.argv[4] + ".out")
"""


@pytest.mark.parametrize("name", ["grouped", "grouped-query"])
def test_a_fresh_process_gives_the_same_outputs_and_unpickles_nothing(tmp_path, name):
    from safetensors.torch import load_file, save_file

    model, x = pruned(name, importance="reconstruction", forward_loop=lambda m: m(inputs(name))), inputs(name)
    bm.save_model(model, tmp_path / "m")
    save_file({"x": x}, tmp_path / "x")
    here = Path(__file__).parent
    arguments = [sys.executable, "-c", SCRIPT, here, name, tmp_path / "m", tmp_path / "x"]
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "x.out")["y"], model(x))
    assert (tmp_path / "m.again").read_bytes() == (tmp_path / "m").read_bytes()
