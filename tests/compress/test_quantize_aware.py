import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner
from bigmodel_ext.compress.quantize import Int8StaticActivationInt8WeightConfig, convert, prepare, prepared, quantize_
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit
from torch import nn
from torch.nn import functional as F

DYNAMIC = bm.Int8DynamicActivationInt8WeightConfig(rows=())
STATIC = Int8StaticActivationInt8WeightConfig("minmax", rows=())
BLOCKS = bm.Int8BlockSparseWeightConfig(rows=())


def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 64), nn.GELU(), nn.Linear(64, 5)
    )


def images(n=16, seed=1):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model, steps=5, **kw):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for seed in range(steps):
        x = images(seed=seed)
        F.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("config", [DYNAMIC, STATIC, BLOCKS], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converted_equals_prepared_up_to_float_rounding(config, dtype):
    model, x = make().to(dtype), images().to(dtype)
    names = prepare(model, config, lambda m: m(x))
    assert names == (("0", "3", "5") if config is DYNAMIC else ("3", "5"))
    if dtype is torch.float32:
        train(model)
    model.eval()
    wanted, before = model(x).detach(), copy.deepcopy(model)
    dense = copy.deepcopy(before)
    for layer in prepared(dense).values():
        layer.__class__ = type(layer).__mro__[2]
    report = convert(model)
    assert report.converted == names
    y = model(x)
    # Sums are taken in another order; a value that falls on another side of a half in the next layer is one step off.
    scale = wanted.abs().max()
    assert (y - wanted).abs().max() < (5e-3 if dtype is torch.float32 else 0.03) * scale
    assert (y - wanted).norm() < 0.3 * (dense(x) - wanted).norm() or dtype is torch.bfloat16
    assert not prepared(model)


def test_one_layer_equals_its_int8_form_exactly_up_to_the_order_of_sums():
    for config in (DYNAMIC, STATIC):
        layer, x = nn.Sequential(nn.Linear(70, 33)), torch.randn(50, 70)
        x[3] = 0.0
        prepare(layer, config, lambda m, x=x: m(x / 2))  # some of x saturates
        wanted = layer(x).detach()
        convert(layer)
        torch.testing.assert_close(layer(x).detach(), wanted, rtol=1e-5, atol=1e-5)


def test_training_through_the_rounding_mends_what_rounding_breaks():
    """The hidden activations are calibrated for 60 times their size and have two levels left: trained with that, the
    layer before makes them larger."""
    after, data = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(512, 16)
    with torch.no_grad():
        target = after(data)
    aware = copy.deepcopy(after)
    args = STATIC, lambda m: m(data * 60), lambda m, fqn: fqn == "2"
    quantize_(after, *args)
    prepare(aware, *args)
    start = float(F.mse_loss(after(data), target).detach())
    assert float(F.mse_loss(aware(data), target).detach()) == pytest.approx(start, rel=1e-3)
    optimizer = torch.optim.Adam(aware.parameters(), 1e-2)
    for _ in range(150):
        F.mse_loss(aware(data), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    convert(aware)
    assert float(F.mse_loss(aware(data), target).detach()) < start / 4


def test_gradients_are_those_of_the_rounded_operands_and_stop_where_x_saturates():
    layer, x = nn.Sequential(nn.Linear(20, 6)), torch.randn(9, 20, requires_grad=True)
    weight = layer[0].weight
    prepare(layer, STATIC, lambda m: m(x.detach() / 2))
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    q, scale = bm.functional.quantize_rows(weight.detach())
    w = q * scale[:, None]
    s = layer[0].input_scale
    inside = x.detach().abs() <= 127 * s
    assert 0 < (~inside).sum() < inside.numel() / 2
    torch.testing.assert_close(x.grad, (grad @ w) * inside)
    torch.testing.assert_close(weight.grad, grad.T @ ((x.detach() / s).clamp(-127, 127).round() * s))


@pytest.mark.parametrize("masks_first", [False, True])
def test_masked_weights_stay_zero_and_make_block_sparse_layers(masks_first):
    model = make()
    masks = lambda: MaskPruner(model, granularity="1x4", pruning_ratio=0.75, filter_fn=lambda m, fqn: fqn == "3")  # noqa: E731
    if masks_first:
        pruner = masks()
    prepare(model, BLOCKS)
    if not masks_first:
        pruner = masks()
    gradual = GradualPruner(pruner, 4, every=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(1, 7):
        F.cross_entropy(model(images(seed=step)), torch.arange(16) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
        gradual(step)
    zero = model[3].weight == 0
    assert 0.7 < float(zero.float().mean()) < 0.8
    wanted = model(images()).detach()
    report = convert(model)
    assert type(model[3]) is bm.nn.Int8SparseLinear
    assert bool((model[3].weight[zero] == 0).all())
    assert report["3"].bytes < 0.2 * report["3"].bytes_before
    assert (model(images()) - wanted).abs().max() < 5e-3 * wanted.abs().max()


def test_a_prepared_model_is_not_saved_as_if_it_were_plain(tmp_path):
    """Loaded, it would compute something else."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    prepare(model, DYNAMIC)
    with pytest.raises(ValueError, match=r"^0, 2 are prepared for quantization-aware training"):
        bm.save_model(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    convert(model)
    bm.save_model(model, tmp_path / "m")


def test_state_dict_and_copies():
    model, plain = make(), make()
    prepare(model, DYNAMIC)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    assert not torch.equal(plain(images()), model(images()))
    static = make()
    prepare(static, STATIC, lambda m: m(images()))
    other = make()
    prepare(other, STATIC, lambda m: m(images() * 3))
    other.load_state_dict(static.state_dict())
    assert torch.equal(other(images()), static(images()))


def test_encoder_layers_call_their_prepared_children_in_eval_mode():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = encoder(x)
        assert prepare(encoder, DYNAMIC) == ("linear1", "linear2")
        assert 0 < float((encoder(x) - before).abs().max()) < 0.1


def test_the_training_loop_trains_it():
    data = images(200)
    examples = Examples(data, (data.mean((1, 2, 3)) > 0).long())
    model = make()
    prepare(model, DYNAMIC)
    fit(model, examples, CrossEntropy(0.0), TrainConfig(20, 50, 1e-2), seed=0)
    trained = accuracy(model, examples)
    assert trained > 0.9
    convert(model)
    assert abs(accuracy(model, examples) - trained) <= 0.01


def test_a_layer_that_would_get_slower_becomes_plain_again(figures):
    figures.given = {("Int8Linear", 1): 0.5}
    model = make()
    prepare(model, bm.Int8DynamicActivationInt8WeightConfig())
    with pytest.warns(UserWarning, match="slower"):
        report = convert(model)
    assert type(model[3]) is nn.Linear
    assert not hasattr(model[3], "config")
    assert "0.50x" in report["3"].reason


def test_bad_input_leaves_the_model():
    model = make()
    with pytest.raises(TypeError, match="config must be an instance of Int8Dyn"):
        prepare(model, 8)
    with pytest.raises(ValueError, match="sparsity must be None"):
        prepare(model, bm.Int8BlockSparseWeightConfig(0.5))
    with pytest.raises(ValueError, match=r"no nn\.Linear or nn\.Conv2d that can be prepared"):
        prepare(model, DYNAMIC, filter_fn=lambda m, fqn: False)
    with pytest.raises(ValueError, match="needs a forward_loop"):
        prepare(model, STATIC)
    with pytest.raises(ValueError, match="call prepare"):
        convert(model)
    assert {type(m) for m in model} == {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear, nn.GELU}
    prepare(model, STATIC, lambda m: m(images()))
    with pytest.raises(ValueError, match=r"rows must be \(\), as those of the layers prepared before, got \(1, 128\)"):
        prepare(model, bm.Int8DynamicActivationInt8WeightConfig())
    wanted = model(images())
    with pytest.raises(ValueError, match="never reached 3, 5"):
        convert(model, lambda m: m[:3](images()))
    assert len(prepared(model)) == 2
    assert torch.equal(model(images()), wanted)
