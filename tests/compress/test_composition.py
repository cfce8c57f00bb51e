"""Methods on top of each other, on one model: what works, in which order, and what is refused with the reason."""

import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.distill import Distillation
from bigmodel_ext.compress.prune import MaskPruner, StructuredPruner, reconstruct_
from bigmodel_ext.compress.quantize import convert, prepare, quantize_
from bigmodel_ext.nn import Int8Linear, Int8SparseLinear
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, fit
from torch import nn

INPUTS, CLASSES = 32, 4
INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())
SPARSE_INT8 = bm.Int8BlockSparseWeightConfig(rows=())


def _data(seed, count=512):
    generator = torch.Generator().manual_seed(99)
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    generator.manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    return centres[targets] + torch.randn(count, INPUTS, generator=generator), targets


TRAIN = list(zip(*(part.split(64) for part in _data(0)), strict=True))
X, Y = _data(1)


def _net(width):
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def _accuracy(model):
    with torch.no_grad():
        return (model.eval()(X).argmax(1) == Y).double().mean().item()


def _forward_loop(model):
    for x, _ in TRAIN:
        model(x)


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _net(128)
        fit(net, TRAIN, CrossEntropy(0.0), TrainConfig(4, 64, 3e-3), seed=0)
    return net


def _composed(seed):
    """A student whose first two layers are 1x4-sparse and all of whose layers round to int8 while they train."""
    torch.manual_seed(seed)
    student = _net(64)
    pruner = MaskPruner(student, granularity="1x4", pruning_ratio=0.75, filter_fn=lambda m, fqn: fqn != "4")
    pruner.step()
    prepare(student, SPARSE_INT8, filter_fn=lambda m, fqn: fqn in pruner.layers)
    prepare(student, INT8, filter_fn=lambda m, fqn: fqn == "4")
    return student, pruner


def _zero_blocks(layer):
    return (layer.weight.reshape(-1, 4) == 0).all(1).double().mean().item()


def test_sparse_int8_quantization_aware_and_distilled_in_one_state_dict(teacher, tmp_path):
    loss = Distillation(teacher, 2.0, 0.7)
    student, pruner = _composed(1)
    start = _accuracy(copy.deepcopy(student))
    fit(student, TRAIN, loss, TrainConfig(2, 64, 3e-3), seed=1, on_step=pruner)
    other, masks = _composed(2)  # the state dict, and only it, carries the training over to another model
    other.load_state_dict(student.state_dict())
    masks.masks = pruner.masks
    fit(other, TRAIN, loss, TrainConfig(2, 64, 2e-3), seed=2, on_step=masks)
    trained = other.eval()(X)
    report = convert(other)
    assert [type(layer) for layer in other[::2]] == [Int8SparseLinear, Int8SparseLinear, Int8Linear]
    assert len(report.layers) == 3
    torch.testing.assert_close(other(X), trained, rtol=0, atol=1e-4 * float(trained.detach().abs().max()))
    assert _accuracy(other) > max(start + 0.2, _accuracy(teacher) - 0.05)
    assert all(_zero_blocks(layer) >= 0.75 - 1e-6 for layer in other[:3:2])
    bm.save_model(other, tmp_path / "m.safetensors")
    again = bm.load_model(_net(64), tmp_path / "m.safetensors").eval()
    assert torch.equal(again(X), other(X))
    assert (tmp_path / "m.safetensors").stat().st_size < 0.15 * sum(p.numel() * 4 for p in teacher.parameters())


def test_structure_then_weights_then_int8(teacher, tmp_path):
    model = copy.deepcopy(teacher)
    pruner = StructuredPruner(model, X[:8], "reconstruction", 0.25, forward_loop=_forward_loop)
    pruner.step()
    reconstruct_(model, _forward_loop, pruning_ratio=0.5, granularity="1x4", filter_fn=lambda m, fqn: fqn == "2")
    bm.sparsify_(model, SPARSE_INT8, filter_fn=lambda m, fqn: fqn == "2")
    quantize_(model, INT8, _forward_loop)
    assert [type(layer) for layer in model[::2]] == [Int8Linear, Int8SparseLinear, Int8Linear]
    assert model[0].out_features == 96
    assert _accuracy(model) > _accuracy(teacher) - 0.03
    bm.save_model(model, tmp_path / "m.safetensors")
    again = bm.load_model(_net(128), tmp_path / "m.safetensors").eval()
    assert torch.equal(again(X), model(X))


CONVERTED = r": 0 \(Int8Linear\), 2 \(Int8Linear\), 4 \(Int8Linear\) are converted already, and have no float"


@pytest.mark.parametrize(
    ("prune", "message"),
    [(lambda m: MaskPruner(m), "no layer with a weight is left to be pruned" + CONVERTED),
     (lambda m: reconstruct_(m, _forward_loop), "the model has no nn.Linear or nn.Conv2d" + CONVERTED),
     (lambda m: StructuredPruner(m, X[:8]), "Int8Linear"),
     (lambda m: prepare(m, INT8), "can be prepared" + CONVERTED)],
)  # fmt: skip
def test_what_is_int8_already_is_refused_with_the_reason(teacher, prune, message):
    model = copy.deepcopy(teacher)
    bm.quantize_(model, INT8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
