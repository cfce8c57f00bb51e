"""compress(model, ...) on small models of a user's own."""

import copy
import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from bigmodel_ext import load_model, save_model
from bigmodel_ext.compress import ChooseLayers, Distill, PruneStructure, Quantize, compress
from bigmodel_ext.compress.controller.forms import forms
from bigmodel_ext.compress.measure import state_bytes
from bigmodel_ext.convert import Int8DynamicActivationInt8WeightConfig, quantize_
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, fit
from torch import nn

CLASSES, INPUTS = 4, 32


def _data(seed, count=512):
    """Clusters around random centres; batches as a user's loader gives them."""
    generator = torch.Generator().manual_seed(99)
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    generator.manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    inputs = centres[targets] + 1.1 * torch.randn(count, INPUTS, generator=generator)
    return inputs, targets


def _loader(seed=0, batch=64):
    inputs, targets = _data(seed)
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


def _net(width=128):
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


INPUTS_V, TARGETS_V = _data(1)


def validation(model):
    return (model(INPUTS_V).argmax(1) == TARGETS_V).double().mean().item()


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _net()
        fit(net, _loader(), CrossEntropy(0.0), TrainConfig(4, 64, 3e-3), seed=0)
    return net


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


INT8_CONFIG = Int8DynamicActivationInt8WeightConfig(rows=())
STEP = ChooseLayers(forms(("int8", "int8_sparse"), (0.5, 0.8, 0.95, 0.99)), trials=6)
TRAINED = ChooseLayers(forms(("int8", "int8_sparse"), (0.5, 0.9)), TrainConfig(1, 64, 1e-3), trials=4)


def test_the_budget_is_kept_and_the_model_smaller(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    baseline = validation(model)
    result = compress(model, _loader(), validation, max_drop=0.02, constraints={"bytes": None}, steps=[STEP])
    assert baseline > 0.9, "the model must have something to lose"
    assert validation(result.model) >= baseline - 0.02 - 1e-9
    first, last = result.report.data["stages"]
    assert last["bytes"] < first["bytes"] / 4  # less than int8 alone
    assert last["score"] == validation(result.model)
    assert {name: torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert [type(layer) for layer in model[::2]] == [nn.Linear] * 3
    save_model(result.model, tmp_path / "m.safetensors")
    again = load_model(result.fresh(), tmp_path / "m.safetensors").eval()
    assert torch.equal(again(INPUTS_V), result.model(INPUTS_V))
    assert set(result.plan[0]["layers"]) == {"0", "2", "4"}
    result.report.write(tmp_path)
    assert f"{last['score']:.4f}" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_tighter_budget_costs_more(model):
    sizes = [
        compress(model, _loader(), validation, max_drop=drop, constraints={"bytes": None}, steps=[STEP])
        .report.data["cost"]["reached"]
        for drop in (0.0, 0.05, 0.4)
    ]  # fmt: skip
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


def test_a_target_is_reached_with_the_least_damage(model):
    result = compress(model, _loader(), validation, max_drop=0.3, constraints={"bytes": "60%"}, steps=[STEP])
    cost = result.report.data["cost"]
    assert cost["met"]
    assert cost["target"] == pytest.approx(0.6 * result.report.data["stages"][0]["bytes"])
    freely = compress(model, _loader(), validation, max_drop=0.3, constraints={"bytes": None}, steps=[STEP])
    assert cost["reached"] > freely.report.data["cost"]["reached"]
    short = compress(model, _loader(), validation, max_drop=0.3, constraints={"bytes": 10}, steps=[STEP]).report
    assert not short.data["cost"]["met"]
    assert "NOT reached" in short.markdown()


def test_a_model_that_returns_an_object_with_logits(model):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(model)

        def forward(self, x):
            return SimpleNamespace(logits=self.net(x), hidden=None)

    result = compress(
        Wrapped(), _loader(), lambda m: validation(lambda x: m(x).logits), max_drop=0.05,
        constraints={"bytes": None}, steps=[TRAINED],
    )  # fmt: skip
    first, last = result.report.data["stages"]
    assert last["bytes"] < first["bytes"] / 2
    assert validation(lambda x: result.model(x).logits) == last["score"]


def test_bits_are_found_per_layer(model):
    """Binary-coded weights of 2, 3 or 4 bits are smaller than int8, and the layers may differ in theirs."""
    step = ChooseLayers(forms(("int8", "binary_coded"), bits=(2, 3, 4)), trials=6)
    result = compress(model, _loader(), validation, max_drop=0.02, constraints={"bytes": None}, steps=[step])
    plan = result.plan[0]["layers"]
    assert any(form["kind"] == "binary_coded" and form["bits"] in (2, 3, 4) for form in plan.values())
    assert result.report.data["cost"]["reached"] < state_bytes(quantize_(copy.deepcopy(model), INT8_CONFIG))
    assert validation(result.model) >= validation(model) - 0.02 - 1e-9


def test_latency_is_what_counts_when_asked(model):
    result = compress(model, _loader(), validation, max_drop=0.05, steps=[STEP])
    details = result.report.data["stages"][1]["details"]
    assert details["cost"] == "latency"
    options = {option["form"]: option["cost"] for option in details["layers"]["2"]["options"]}
    assert all(cost > 0 for cost in options.values())
    assert details["trials"][0]["cost"] > 0


def test_what_keeps_no_budget_leaves_the_model_as_it_was(model):
    result = compress(
        model, _loader(), lambda m: 1.0 if type(m[0]) is type(m[2]) is type(m[4]) is nn.Linear else 0.0,
        max_drop=0.5, steps=[STEP, Quantize(Int8DynamicActivationInt8WeightConfig(rows=()), (0.0, 0.3))],
    )  # fmt: skip
    assert _same(result.model, model)
    stages = result.report.data["stages"]
    assert [stage["rolled_back"] for stage in stages] == [False, True, True]
    assert stages[-1]["setting"] == "nothing is quantized"


def test_prune_distill_quantize_in_one_call(model):
    steps = [
        Distill({"tiny": lambda: _net(4), "half": lambda: _net(64)}, TrainConfig(4, 64, 3e-3)),
        TRAINED,
        Quantize(Int8DynamicActivationInt8WeightConfig(rows=())),
    ]
    result = compress(model, _loader(), validation, max_drop=0.03, constraints={"bytes": None}, steps=steps)
    names = [stage["name"] for stage in result.report.data["stages"]]
    assert names == ["original", "student", "layers", "quantized"]
    assert not [m for m in result.model if type(m) is nn.Linear], "everything left float is quantized"
    assert validation(result.model) >= validation(model) - 0.03 - 1e-9
    assert result.model[0].out_features == result.fresh()[0].out_features < 128


INT8 = Quantize(INT8_CONFIG)
STUDENT = Distill({"half": lambda: _net(64)}, TrainConfig(1, 64, 1e-3))


@pytest.mark.parametrize(
    ("steps", "message"),
    [([STEP, STUDENT], "Distill can't come after ChooseLayers: the student would take"),
     ([INT8, STEP], "ChooseLayers can't come after Quantize: quantized layers have no float weights"),
     ([INT8, PruneStructure()], "PruneStructure can't come after Quantize: channels can't be removed"),
     ([STEP, STEP], "ChooseLayers can't come after ChooseLayers")],
)  # fmt: skip
def test_an_order_that_cannot_work_is_refused_with_the_reason(model, steps, message):
    with pytest.raises(ValueError, match=message):
        compress(model, _loader(), validation, steps=steps)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"constraints": {"speed": 1}}, ValueError, "constraints must have one key, latency or bytes, got {'speed': 1}"),
     ({"constraints": {"bytes": 1, "latency": 2}}, ValueError, "one key"),
     ({"constraints": {"bytes": "half"}}, ValueError, r"constraints\['bytes'\] must be a number, or a share as '40%'"),
     ({"constraints": {"bytes": -3}}, ValueError, "must be finite and above 0, got -3"),
     ({"max_drop": -1}, ValueError, "max_drop must be"),
     ({"steps": ["prune"]}, TypeError, "steps must be instances of Distill, PruneStructure, ChooseLayers, Quantize"),
     ({"validation_fn": lambda m: math.nan}, ValueError, "validation_fn must return a finite number, got nan"),
     ({"train_loader": []}, ValueError, "train_loader must yield at least one batch, got none"),
     ({"train_loader": [{"x": 1}]}, TypeError, r"train_loader must yield \(inputs, targets\).*got dict")],
)  # fmt: skip
def test_bad_arguments_are_refused(model, changes, error, message):
    arguments = {"train_loader": _loader(), "validation_fn": validation, "steps": [STEP], **changes}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        compress(model, **arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_calibration_never_reached_is_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(INPUTS, CLASSES), nn.Linear(INPUTS, CLASSES)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="forward_loop never reached unused"):
        compress(Half(), _loader(), validation, steps=[STEP])


class _Killed(BaseException):
    pass


def _killed_at(count, validation=validation):
    calls = []

    def score(model):
        calls.append(1)
        if len(calls) > count:
            raise _Killed
        return validation(model)

    return score


def test_killed_anywhere_and_resumed_it_ends_with_the_same_plan(model, tmp_path):
    """At every call of validation_fn; with training, whose results are kept with the others."""

    def run(score, folder):
        return compress(
            model, _loader(), score, max_drop=0.03, constraints={"bytes": None}, folder=folder,
            steps=[Distill({"half": lambda: _net(64)}, TrainConfig(2, 64, 3e-3)), TRAINED],
        )  # fmt: skip

    calls = []
    whole = run(lambda m: calls.append(1) or validation(m), tmp_path / "whole")
    assert len(calls) >= 4
    for count in range(len(calls)):
        folder = tmp_path / str(count)
        with pytest.raises(_Killed):
            run(_killed_at(count), folder)
        again = run(validation, folder)
        assert again.plan == whole.plan, count
        assert _same(again.model, whole.model), count
    assert whole.report.data["stages"][2]["attempts"], "there was something to be killed in"
    with pytest.raises(ValueError, match=r"journal.jsonl belongs to another run: .*max_drop was 0.03, is 0.5"):
        compress(model, _loader(), validation, max_drop=0.5, constraints={"bytes": None}, steps=[TRAINED],
                 folder=tmp_path / "whole")  # fmt: skip
    with pytest.raises(ValueError, match="belongs to another run: calibration data was"):
        compress(model, _loader(1), validation, max_drop=0.03, constraints={"bytes": None},
                 steps=[Distill({"half": lambda: _net(64)}, TrainConfig(2, 64, 3e-3)), TRAINED],
                 folder=tmp_path / "whole")  # fmt: skip


def test_of_several_shares_the_one_that_ends_cheapest_is_taken(model, tmp_path):
    """Structure may use little or much of the budget: both are followed to the end, killed or not."""
    inputs, _ = _data(1)
    wanted = model(inputs).detach()

    def near(m):
        return -float((m(inputs) - wanted).norm() / wanted.norm())

    def run(shares, score=near, folder=None):
        return compress(
            model, _loader(), score, max_drop=0.5, constraints={"bytes": None}, folder=folder,
            steps=[PruneStructure((0.5, 0.75, 0.875), shares=shares), STEP],
        )  # fmt: skip

    alone = {share: run((share,)) for share in (0.2, 1.0)}
    costs = {share: result.report.data["cost"]["reached"] for share, result in alone.items()}
    both = run((0.2, 1.0))
    assert both.report.data["cost"]["reached"] == min(costs.values()) < max(costs.values())
    assert both.plan == alone[min(costs, key=costs.get)].plan
    assert run((1.0, 0.2)).plan == both.plan
    calls = []
    run((0.2, 1.0), lambda m: calls.append(1) or near(m))
    for count in range(2, len(calls), 9):
        with pytest.raises(_Killed):
            run((0.2, 1.0), _killed_at(count, near), tmp_path / str(count))
        again = run((0.2, 1.0), folder=tmp_path / str(count))
        assert again.plan == both.plan
        assert _same(again.model, both.model)
        assert [file.name for file in (tmp_path / str(count)).iterdir()] == ["journal.jsonl"]


SCRIPT = """
    import sys, torch
    sys.path.insert(0, {tests!r})
    import os, signal
    import test_compress as t
    from bigmodel_ext.compress import compress
    torch.manual_seed(0)
    net, calls = t._net(), []
    def score(model):
        calls.append(1)
        if len(calls) > {count}:
            os.kill(os.getpid(), signal.SIGKILL)
        return t.validation(model)
    result = compress(net, t._loader(), score, max_drop=1.0, constraints={{"bytes": None}}, steps=[t.STEP],
                      folder={folder!r})
    print(result.plan, result.report.data["cost"]["reached"])
"""


def _process(folder, count):
    code = textwrap.dedent(SCRIPT).format(tests=str(__file__.rsplit("/", 1)[0]), count=count, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_killed_process_is_resumed(tmp_path):
    whole = _process(tmp_path / "whole", 100)
    assert whole.returncode == 0, whole.stderr
    assert _process(tmp_path / "a", 3).returncode == -9
    again = _process(tmp_path / "a", 100)
    assert again.stdout == whole.stdout
