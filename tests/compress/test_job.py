"""The whole job on its quick recipe: what is written, and that it hangs together."""

import json
from dataclasses import replace

import pytest
import torch
from bigmodel_ext import load_model
from bigmodel_ext.compress import job, measure, output, reload
from bigmodel_ext.compress.job import compress
from bigmodel_ext.nn import Int8Linear, Int8SparseLinear
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import NonFiniteLossError, accuracy
from bigmodel_ext.train.progress import Silent
from safetensors.torch import load_file

FILES = {"layers.png", "model.safetensors", "pareto.png", "report.json", "report.md", "stages.png"}
ENTRY = {"score", "bytes", "parameters", "latency_ms", "batch", "threads"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, report) of a quick run whose budget everything fits."""
    out = tmp_path_factory.mktemp("runs") / "new" / "digits"
    return out, compress(tasks.get("digits"), out, seed=3, max_drop=1.0, cost="bytes", quick=True)


def test_files_and_keys(run):
    out, report = run
    assert {file.name for file in out.iterdir()} == FILES
    assert json.loads((out / "report.json").read_text()) == report
    assert {"task", "seed", "max_drop", "hardware", "baseline", "stages", "compressed", "reloaded"} <= set(report)
    for entry in (report["baseline"], *report["stages"], report["compressed"], report["reloaded"]):
        assert set(entry) >= ENTRY
    assert [entry["name"] for entry in report["stages"]] == ["student", "layers"]
    assert (report["task"], report["seed"], report["max_drop"]) == ("digits", 3, 1.0)
    for name in ("stages.png", "layers.png", "pareto.png"):
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
    assert done["score"] == reloaded["score"] == accuracy(model, test)
    assert done["parameters"] == reloaded["parameters"]
    assert reloaded["bit_equal"] is True
    base = report["baseline"]
    assert done["times_smaller"] == base["bytes"] / done["bytes"] > 1
    assert done["drop"] == pytest.approx(base["score"] - done["score"])
    assert base["parameters"] * 4 == base["bytes"]


def test_pruned_share_is_exact(run):
    out, report = run
    student, pruned = report["stages"][:2]
    layers = report["layers"]
    sparse = {layer["fqn"]: layer["sparsity"] for layer in layers if layer["sparsity"]}
    assert sparse, "no layer was pruned"
    assert set(sparse) <= {f"blocks.0.{name}" for name in ("attention.qkv", "attention.proj", "fc1", "fc2")}
    model = load_model(tasks.get("digits").build(report["compressed"]["settings"]), out / "model.safetensors")
    for fqn, share in sparse.items():
        blocks = model.get_submodule(fqn).weight.view(-1, 4)
        assert (blocks == 0).all(1).double().mean().item() == pytest.approx(share, abs=2e-3)
    assert pruned["nonzero"] < student["nonzero"]
    assert pruned["parameters"] == student["parameters"]


def test_markdown_tells_the_figures(run):
    out, report = run
    text = (out / "report.md").read_text()
    assert f"{report['compressed']['times_smaller']:.1f}x smaller" in text
    assert "bit for bit the saved model's" in text
    for layer in report["layers"]:
        assert f"`{layer['fqn']}` | {layer['form']} |" in text


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    """Killed as the second combination is scored. Bytes are what counts here: latencies are measured anew each time."""
    task, whole = tasks.get("digits"), tmp_path / "whole"
    quick = replace(task.quick, train_teacher=task.quick.train_student)
    task = replace(task, quick=quick)
    options = {"seed": 1, "max_drop": 1.0, "cost": "bytes", "quick": True}
    first = compress(task, whole, **options)

    calls = []

    def killed(model, examples):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return task.metric(model, examples)

    again = replace(task, metric=replace(task.metric, score=killed))
    with pytest.raises(KeyboardInterrupt):
        compress(again, tmp_path / "out", **options, state=tmp_path / "state")
    assert list((tmp_path / "out").iterdir()) == []
    trained = []
    fit = job.fit
    monkeypatch.setattr(job, "fit", lambda *a, **k: trained.append(1) or fit(*a, **k))
    (tmp_path / "state" / "notes.txt").write_text("the user's")
    second = compress(task, tmp_path / "out", **options, state=tmp_path / "state")
    assert not trained, "the teacher was trained again"
    assert [stage["setting"] for stage in second["stages"]] == [stage["setting"] for stage in first["stages"]]
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "out"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["notes.txt"]
    output.remove_files(tmp_path / "state", "notes.txt", "another")
    assert not (tmp_path / "state").exists()


class _Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def test_what_breaks_the_budget_is_rolled_back_and_told(tmp_path):
    """Nothing but the teacher is good enough: the result is the teacher."""
    task = tasks.get("digits")
    teacher = []

    def score(model, examples):
        teacher.append(sum(p.numel() for p in model.parameters()))
        return 1.0 if teacher[0] == teacher[-1] else 0.0

    notes = _Notes()
    task = replace(task, metric=replace(task.metric, score=score))
    report = compress(task, tmp_path, seed=0, quick=True, progress=notes)
    student, layers = report["stages"]
    assert (student["rolled_back"], layers["rolled_back"]) == (True, True)
    assert report["compressed"]["settings"] == dict(task.quick.teacher)
    assert report["compressed"]["times_smaller"] == 1.0
    assert {layer["kind"] for layer in report["layers"]} == {"dense"}
    assert sum("rolled back" in line for line in notes.lines) >= 2
    assert "rolled back" in (tmp_path / "report.md").read_text()


def test_a_nan_loss_leaves_earlier_results_alone(tmp_path):
    task = tasks.get("digits")
    broken = replace(task.quick, train_student=replace(task.quick.train_student, learning_rate=float("inf")))
    (tmp_path / "report.json").write_text("earlier")
    with pytest.raises(NonFiniteLossError, match="became nan in stage 'student width"):
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
    converted = torch.nn.Sequential(Int8SparseLinear.from_dense(model[0]), model[1], Int8Linear.from_float(model[2]))
    assert measure.parameters(converted) == measure.parameters(model) == 16 * 8 + 8 + 8 * 4 + 4
    assert measure.nonzero_weights(model) == 4 * 8 + 8 + 8 * 4 + 4
    assert measure.nonzero_weights(converted) <= measure.nonzero_weights(model)
