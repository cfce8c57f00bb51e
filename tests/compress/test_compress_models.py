"""compress(model, ...) on models and loaders that are not a plain MLP on a list of batches."""

import math

import pytest
import torch
from bigmodel_ext.compress import ChooseLayers, Distill, PruneStructure, Quantize, compress
from bigmodel_ext.compress.controller import tables
from bigmodel_ext.compress.controller.forms import forms
from bigmodel_ext.compress.measure import nonzero_weights, parameters, state_bytes
from bigmodel_ext.compress.quantize import HamiltonianConfig
from bigmodel_ext.convert import Int8DynamicActivationInt8WeightConfig, quantize_
from bigmodel_ext.nn import Int8Conv2d, SemiSparseLinear, SparseConv2d, SparseLinear
from bigmodel_ext.train.loop import TrainConfig
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

torch.manual_seed(0)
X, Y = torch.randn(512, 32), torch.randint(4, (512,))
STEP = ChooseLayers(forms(("int8", "int8_sparse"), (0.5,)), trials=3)
TRAINED = ChooseLayers(forms(("int8",)), TrainConfig(1, 32, 1e-3), trials=2)
INT8 = Int8DynamicActivationInt8WeightConfig(rows=())


def _net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def _loader():
    return [(X[:32], Y[:32]), (X[32:64], Y[32:64])]


def _run(model, loader=None, validation=lambda m: 1.0, steps=(STEP,), **keywords):
    return compress(
        model, _loader() if loader is None else loader, validation, constraints={"bytes": None}, steps=steps, **keywords
    )


class _Squeezed(nn.Module):
    """A regression: one number for each example."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.net, self.head, self.scale = _net(), nn.Linear(4, 1), scale

    def forward(self, x):
        return self.scale * self.head(self.net(x)).squeeze(-1)


def test_outputs_of_one_dimension():
    result = _run(_Squeezed())
    assert result.model(X).shape == (512,)
    assert state_bytes(result.model) < state_bytes(_Squeezed()) / 2


def test_outputs_that_are_huge_or_overflow():
    form = STEP.forms[1]

    def built(fqn, form):
        torch.manual_seed(1)
        return nn.Linear(4, 1)

    small, huge = _Squeezed(), _Squeezed(1e30)
    huge.load_state_dict(small.state_dict())
    expected, found = (tables.damages(model, {"head": [form]}, built, [X])["head"] for model in (small, huge))
    assert found == pytest.approx(expected, rel=1e-3)

    def infinite(fqn, form):
        return nn.Linear(4, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(math.inf))

    assert tables.damages(small, {"head": [form]}, infinite, [X]) == {"head": [tables.BAD]}
    assert _run(huge).report.data["stages"][-1]["score"] == 1.0


def test_convolutions_padded_to_the_same_size():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten())
    images = torch.randn(32, 3, 6, 6)
    step = ChooseLayers(forms(("int8", "sparse"), (0.9,)), trials=2)
    result = _run(model, [(images, Y[:32])], steps=[step])
    assert type(result.model[0]) is not nn.Conv2d


@pytest.mark.parametrize("exchange", [
    lambda m: m.__setitem__(0, Int8Conv2d.from_float(m[0])),
    lambda m: m.__setitem__(0, SparseConv2d.from_dense(m[0])),
    lambda m: m.__setitem__(3, SparseLinear.from_dense(m[3])),
    lambda m: m.__setitem__(3, SemiSparseLinear.from_dense(m[3])),
])  # fmt: skip
def test_a_model_stands_for_as_many_parameters_in_every_form(exchange):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))
    with torch.no_grad():  # 2:4 for the semi-sparse one, and zeros for the others
        model[0].weight[:, :2] = 0.0
        model[3].weight.view(16, 8, 4)[:, :, 2:] = 0.0
    before = parameters(model), 8 * 2 * 9 + 8 + 16 * 16 + 16
    exchange(model)
    assert parameters(model) == before[0] == 8 * 4 * 9 + 8 + 16 * 32 + 16
    if type(model[0]) is not Int8Conv2d:  # rounding to 8 bits makes zeros of its own
        assert nonzero_weights(model) == before[1]


def test_tied_tensors_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

    assert state_bytes(Tied()) == 160


def test_latencies_are_measured_with_inputs_that_calibration_does_not_see():
    plain, other = (_run(_net(), example_inputs=inputs) for inputs in (None, 1e4 * torch.ones(3, 32)))
    for a, b in zip(plain.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert other.report.data["stages"][0]["batch"] == 3


def test_a_shuffling_loader_gives_the_same_whatever_was_drawn_before_and_after():
    results = []
    for seed in (1, 2):
        loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True)
        model = _net()
        torch.manual_seed(seed)
        expected = torch.random.get_rng_state()
        results.append(_run(model, loader))
        assert torch.equal(torch.random.get_rng_state(), expected)
    a, b = (result.report.data["stages"][1]["details"] for result in results)
    assert a == b


class _Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


@pytest.mark.parametrize(
    ("loader", "steps", "message"),
    [((batch for batch in _loader()), [STEP], "train_loader must be iterable again and again, got a generator"),
     (DataLoader(_Stream(), batch_size=32), [TRAINED], "train_loader must have a length for steps that train"),
     (DataLoader(_Stream(), batch_size=32), [Distill({"net": _net}, TrainConfig(1, 32, 1e-3))], "must have a length")],
)  # fmt: skip
def test_loaders_that_cannot_be_used_are_refused(loader, steps, message):
    with pytest.raises(TypeError, match=message):
        _run(_net(), loader, steps=steps)


def test_a_loader_without_a_length_is_enough_for_calibration():
    assert _run(_net(), DataLoader(_Stream(), batch_size=32)).plan


def test_a_validation_that_changes_the_model_is_refused():
    def validation(model):
        with torch.no_grad():
            model[0].weight.mul_(0.9)
        return 1.0

    model = _net()
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="validation_fn changed the model that it was given"):
        _run(model, validation=validation)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: Quantize(INT8, ()), "keep_float must be shares in .0, 1., got ()"),
     (lambda: Quantize(INT8, (0.0, 1.5)), "keep_float must be shares in .0, 1., got .0.0, 1.5."),
     (lambda: Distill({}, TrainConfig(1, 32, 1e-3)), "students must name at least one"),
     (lambda: PruneStructure(shares=()), "shares must be in .0, 1., got ()"),
     (lambda: PruneStructure(shares=(0.5, 1.5)), "shares must be in .0, 1., got .0.5, 1.5."),
     (lambda: PruneStructure(keywords={"pruning_ratio": 0.3}), "keywords can't hold pruning_ratio: the step sets it")],
)  # fmt: skip
def test_bad_steps_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_report_says_how_many_layers_a_method_took():
    taken = _run(_net(), steps=[Quantize(HamiltonianConfig(2, rows=()))])
    assert taken.report.data["stages"][-1]["setting"] == "every layer: 2 quantized"
    hooked = _net()
    hooked[0].register_forward_hook(lambda *seen: None)  # such a layer is left as it is
    left = _run(hooked, steps=[Quantize(HamiltonianConfig(2, rows=()))])
    assert left.report.data["stages"][-1]["setting"] == "every layer: 1 quantized"


def test_a_layer_that_is_not_finite_is_named():
    model = _net()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="2: the weight holds NaN or infinity"):
        _run(model, steps=[ChooseLayers(forms(("binary_coded",), bits=(2,)), trials=1)])


def test_a_report_of_structure_and_layers(tmp_path):
    steps = [PruneStructure(trials=2), STEP]
    report = _run(_net(), steps=steps).report
    report.write(tmp_path / "new")
    first = (tmp_path / "new" / "pareto.png").read_bytes()
    layers_only = type(report)({**report.data, "stages": [report.data["stages"][i] for i in (0, 2)]})
    layers_only.write(tmp_path / "layers")
    assert first == (tmp_path / "layers" / "pareto.png").read_bytes()
    structure_only = type(report)({**report.data, "stages": report.data["stages"][:2]})
    structure_only.write(tmp_path / "structure")
    assert not (tmp_path / "structure" / "pareto.png").exists()


def test_what_is_converted_already_is_named():
    model = _net()
    quantize_(model, INT8)
    with pytest.raises(
        ValueError, match=r"can be exchanged.*: 0 \(Int8Linear\), 2 \(Int8Linear\) are converted already"
    ):
        _run(model)


def test_only_its_own_files_are_removed_from_the_folder(tmp_path):
    """At the end; a run that was killed leaves some that the next one removes."""

    def killed(model):
        calls.append(model)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return 1.0

    calls = []
    names = ("my-model.safetensors", "0-layers-1.safetensors")
    for name in names:
        (tmp_path / name).write_bytes(b"the user's")
    with pytest.raises(KeyboardInterrupt):
        _run(_net(), validation=killed, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    _run(_net(), folder=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted((*names, "journal.jsonl"))
    assert all((tmp_path / name).read_bytes() == b"the user's" for name in names)
