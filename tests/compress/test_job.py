"""The whole job on its quick recipe: what is written, and that it hangs together."""

import json
from dataclasses import replace

import pytest
import torch
from bigmodel_ext import load_model
from bigmodel_ext.compress import measure, reload, select, stages
from bigmodel_ext.compress.job import compress
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import NonFiniteLossError, accuracy, outputs
from bigmodel_ext.train.progress import Silent
from safetensors.torch import load_file

FILES = {"layers.png", "model.safetensors", "report.json", "report.md", "stages.png"}
ENTRY = {"accuracy", "bytes", "parameters", "latency_ms", "batch", "threads"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, report) of a quick run whose budget everything fits."""
    out = tmp_path_factory.mktemp("runs") / "new" / "digits"
    return out, compress(tasks.get("digits"), out, seed=3, max_drop=1.0, quick=True)


def test_files_and_keys(run):
    out, report = run
    assert {file.name for file in out.iterdir()} == FILES
    assert json.loads((out / "report.json").read_text()) == report
    assert {"task", "seed", "max_drop", "hardware", "baseline", "stages", "compressed", "reloaded"} <= set(report)
    for entry in (report["baseline"], *report["stages"], report["compressed"], report["reloaded"]):
        assert set(entry) >= ENTRY
    assert [entry["name"] for entry in report["stages"]] == ["student", "pruned", "int8"]
    assert (report["task"], report["seed"], report["max_drop"]) == ("digits", 3, 1.0)
    for name in ("stages.png", "layers.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_figures_are_those_of_the_saved_file(run):
    out, report = run
    tensors = load_file(out / "model.safetensors")
    done, reloaded = report["compressed"], report["reloaded"]
    model = load_model(tasks.get("digits").build(done["settings"]), out / "model.safetensors").eval()
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert done["bytes"] == reloaded["bytes"] == held
    assert stored <= held < stored + 2000  # equal tensors (fresh norms, say) are stored once
    test = tasks.get("digits").load(3).test
    assert done["accuracy"] == reloaded["accuracy"] == accuracy(model, test)
    assert done["parameters"] == reloaded["parameters"]
    assert reloaded["bit_equal"] is True
    base = report["baseline"]
    assert done["times_smaller"] == base["bytes"] / done["bytes"] > 1
    assert done["accuracy_drop"] == pytest.approx(base["accuracy"] - done["accuracy"])
    assert base["parameters"] * 4 == base["bytes"]


def test_pruned_share_is_exact(run):
    report = run[1]
    student, pruned = report["stages"][:2]
    layers = report["layers"]
    assert {layer["fqn"] for layer in layers if layer["zero_blocks"]} == {
        f"blocks.0.{name}" for name in ("attention.qkv", "attention.proj", "fc1", "fc2")
    }
    assert all(layer["zero_blocks"] == pytest.approx(0.5, abs=1e-3) for layer in layers if layer["zero_blocks"])
    assert pruned["nonzero"] < 0.6 * student["nonzero"]
    assert pruned["parameters"] == student["parameters"]


def test_markdown_tells_the_figures(run):
    out, report = run
    text = (out / "report.md").read_text()
    assert f"{report['compressed']['times_smaller']:.1f}x smaller" in text
    assert "bit for bit the saved model's" in text
    for layer in report["layers"]:
        assert f"`{layer['fqn']}` | {layer['kind']} |" in text


def test_same_seed_same_teacher_student_and_pruned():
    task, quick = tasks.get("digits"), tasks.get("digits").quick
    recipe = replace(quick, train_teacher=quick.train_student)
    a, b = (stages.run(task, recipe, seed=1, max_drop=1.0, progress=Silent()) for _ in range(2))
    for first, second in zip(a.stages[:3], b.stages[:3], strict=True):
        x = a.data.test.inputs
        assert torch.equal(outputs(first.model, x), outputs(second.model, x)), first.name


class _Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def test_a_stage_that_breaks_the_budget_is_rolled_back_and_told(monkeypatch):
    """Accuracies as scripted: the student is fine, 0.9 is too sparse and 0.5 is not, int8 never fits."""
    script = iter([0.95, 0.945, 0.90, 0.94, 0.5, 0.6, 0.7])
    monkeypatch.setattr(stages, "accuracy", lambda model, examples: next(script))
    monkeypatch.setattr(stages, "fit", lambda *args, **kwargs: [])
    notes, task = _Notes(), tasks.get("digits")
    recipe = replace(task.quick, sparsities=(0.9, 0.5))
    outcome = stages.run(task, recipe, seed=0, max_drop=0.011, progress=notes)
    teacher, student, pruned, int8 = outcome.stages
    assert (student.rolled_back, pruned.rolled_back, int8.rolled_back) == (False, True, True)
    assert pruned.setting == "50% of 1x4 blocks zero"
    assert [attempt.kept for attempt in pruned.attempts] == [False, True]
    assert int8.model is pruned.model
    assert {choice.kind for choice in outcome.choices} == {select.DENSE}
    assert sum("rolled back" in line for line in notes.lines) == 4
    assert teacher.model is not student.model


def test_a_nan_loss_leaves_earlier_results_alone(tmp_path):
    task = tasks.get("digits")
    broken = replace(task.quick, train_student=replace(task.quick.train_student, learning_rate=float("inf")))
    (tmp_path / "report.json").write_text("earlier")
    with pytest.raises(NonFiniteLossError, match="became nan in stage 'distilled student', epoch 1"):
        compress(replace(task, quick=broken), tmp_path, quick=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.json", "earlier")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"max_drop": 1.5}, r"max_drop must be in \[0, 1\], got 1.5"), ({"max_drop": float("nan")}, "max_drop must be"),
     ({"seed": -1}, "seed must be at least 0, got -1")],
)  # fmt: skip
def test_bad_arguments_are_refused_before_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compress(tasks.get("digits"), tmp_path / "x", **changes)
    assert not (tmp_path / "x").exists()


def test_reload_failure_is_one_clear_error(tmp_path):
    task, (file,) = tasks.get("digits"), [tmp_path / "model.safetensors"]
    file.write_bytes(b"not a model")
    settings = task.quick.teacher
    with pytest.raises(RuntimeError, match=r"could not be checked in a fresh process: .*model.safetensors"):
        reload.check("digits", settings, task.build(settings), file, task.load(0).test, 8, tmp_path)


def test_counting_survives_conversion():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[:, 4:] = 0
    choice = select.LayerChoice("0", select.INT8_SPARSE, 1, 0.75, {}, 0.0, "")
    other = replace(choice, fqn="2", kind=select.INT8)
    converted = select.apply(model, [choice, other])
    assert [type(layer).__name__ for layer in converted] == ["Int8SparseLinear", "ReLU", "Int8Linear"]
    assert measure.parameters(converted) == measure.parameters(model) == 16 * 8 + 8 + 8 * 4 + 4
    assert measure.nonzero_weights(model) == 4 * 8 + 8 + 8 * 4 + 4
    assert measure.nonzero_weights(converted) <= measure.nonzero_weights(model)
    assert type(model[0]) is torch.nn.Linear


def test_the_fastest_form_is_taken_and_of_equals_the_smallest():
    sizes = {"fp32": 400, "int8": 100, "int8 1x4-sparse": 30}

    def choice(int8, sparse):
        return select._fastest({"fp32": 1.0, "int8": int8, "int8 1x4-sparse": sparse}, sizes, 0.8)

    assert choice(0.5, 0.7)[0] == "fp32"
    assert choice(3.0, 2.0)[0] == "int8"
    assert choice(3.0, 2.9)[0] == "int8 1x4-sparse"
    kind, reason = choice(3.0, 6.0)
    assert kind == "int8 1x4-sparse"
    assert reason == "fastest as measured: int8 3.00x, int8 1x4-sparse 6.00x of fp32; 80% of 1x4 blocks are zero"
