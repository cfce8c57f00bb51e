"""Int8Conv2d and SparseConv2d as layers: what they hold, save, convert from and to, and torch's machinery."""

import copy
import io

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from convs import CLASS, MAKE, SHAPES, Net, dense_conv, image, layer_of
from layers import tensors
from torch import nn
from torch.utils.checkpoint import checkpoint

INT8, SPARSE = bm.Int8DynamicActivationInt8WeightConfig(rows=()), bm.UnstructuredSparseWeightConfig(0.6, rows=())


@pytest.fixture(params=MAKE)
def kind(request):
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_conv(kind, shape, bias):
    conv = dense_conv(shape, bias)
    layer = MAKE[kind](conv)
    assert isinstance(layer, nn.Conv2d)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.bias is conv.bias
    assert layer.weight.shape == conv.weight.shape
    x = image(shape)
    y, expected = (
        layer(x),
        nn.functional.conv2d(x, layer.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups),
    )
    assert y.shape == conv(x).shape
    tolerance = 1e-4 if kind == "sparse" else 0.02 * float(expected.detach().abs().max())
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=tolerance)
    assert torch.equal(layer(x[1]), layer(x[1:])[0])
    assert layer(x[:0]).shape == y[:0].shape
    assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert repr(layer).replace(type(layer).__name__, "Conv2d").startswith(repr(conv)[:-1])
    with pytest.raises((AttributeError, KeyError, TypeError)):
        layer.weight = torch.zeros(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_weight_follows_the_formula(dtype):
    conv = dense_conv("strided", dtype=dtype)
    layer = bm.nn.Int8Conv2d.from_float(conv)
    q, scale = _reference.quantize_rows(conv.weight.detach().flatten(1))
    assert torch.equal(layer.weight_q, q.view(conv.weight.shape))
    assert torch.equal(layer.weight_scale, scale)
    assert torch.equal(layer.weight, (layer.weight_q.float() * scale.view(-1, 1, 1, 1)).to(dtype))
    x = image("strided").to(dtype)
    expected = bm.functional.int8_conv2d(
        x, layer.weight_q, scale, conv.bias, conv.stride, 0, conv.dilation, conv.groups
    )
    assert torch.equal(layer(x), expected)


def test_what_is_resident():
    layer = bm.nn.Int8Conv2d.from_float(nn.Conv2d(64, 128, 3, bias=False))
    assert set(tensors(layer)) == {"packed", "weight_scale"}
    assert sum(t.numel() * t.element_size() for t in tensors(layer).values()) <= 1.1 * 64 * 128 * 9
    depthwise = bm.nn.Int8Conv2d.from_float(nn.Conv2d(64, 64, 3, groups=64))
    assert depthwise.packed.numel() == 64 * 9
    sparse = bm.nn.SparseConv2d.from_dense(dense_conv(sparsity=0.9))
    assert set(tensors(sparse)) == {"values", "crow", "col", "bias"}


def test_sparse_keeps_what_the_mask_keeps():
    conv = dense_conv("strided", sparsity=0.0)
    mask = torch.rand(conv.weight.shape) < 0.3
    layer = bm.nn.SparseConv2d.from_dense(conv, mask)
    assert layer.nnz == int(mask.sum())
    assert torch.equal(layer.weight, torch.where(mask, conv.weight, 0.0))


def test_sparse_trains_stored_values_only():
    layer, x = layer_of("sparse"), image()
    before, pattern = layer.values.detach().clone(), layer.weight.detach() != 0
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    layer(x).square().mean().backward()
    w = layer.weight.detach().requires_grad_()
    nn.functional.conv2d(x, w, layer.bias.detach(), padding=1).square().mean().backward()
    torch.testing.assert_close(layer.values.grad, w.grad[pattern])
    optimizer.step()
    assert not torch.equal(layer.values, before)
    assert torch.equal(layer.weight != 0, pattern)


def test_to_dense(kind, shape):
    layer = layer_of(kind, shape).eval()
    conv = layer.to_dense()
    assert type(conv) is nn.Conv2d
    assert not conv.training
    assert torch.equal(conv.weight, layer.weight)
    assert torch.equal(conv.bias, layer.bias)
    assert conv.bias is not layer.bias
    assert torch.equal(MAKE[kind](conv).weight, layer.weight)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_dict_round_trip(kind, shape, device, assign):
    layer, x = layer_of(kind, shape), image(shape)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    wanted = {"int8": {"weight_q", "weight_scale", "bias"}, "sparse": {"values", "crow", "col", "bias"}}
    assert set(state) == wanted[kind]
    fresh = CLASS[kind](**SHAPES[shape], device=device)
    if device == "meta" and not assign:
        fresh = fresh.to_empty(device="cpu")
    assert fresh.load_state_dict(state, assign=assign) == ([], [])
    assert torch.equal(fresh(x), layer(x))
    assert {n: t.dtype for n, t in tensors(fresh).items()} == {n: t.dtype for n, t in tensors(layer).items()}


def test_a_state_dict_that_does_not_fit(kind):
    state = layer_of(kind).state_dict()
    name = "weight_q" if kind == "int8" else "col"
    with pytest.raises(RuntimeError, match=rf"Missing key.*{name}"):
        CLASS[kind](**SHAPES["plain"]).load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match=rf"{name} must be (torch\.)?u?int8"):
        CLASS[kind](**SHAPES["plain"]).load_state_dict({**state, name: state[name].int()})


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_casts_leave_integers_and_scales(kind, cast):
    layer = layer_of(kind)
    before = {n: t.clone() for n, t in tensors(layer).items()}
    moved = copy.deepcopy(layer).to(cast)
    for name, t in tensors(moved).items():
        if name in ("bias", "values"):
            assert t.dtype == cast
        else:
            assert torch.equal(t, before[name]), name
    y = moved(image().to(cast))
    assert y.dtype == cast
    assert y.isfinite().all()


def test_deepcopy_and_reset(kind):
    layer, x = layer_of(kind), image()
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x), layer(x))
    assert all(tensors(copied)[n].data_ptr() != t.data_ptr() for n, t in tensors(layer).items())
    copied.reset_parameters()
    assert not copied(x).any()
    assert layer(x).any()


def test_bad_arguments(kind):
    for wrong in (nn.Linear(3, 4), nn.Conv1d(3, 4, 1), nn.ConvTranspose2d(3, 4, 1)):
        with pytest.raises(TypeError, match=rf"conv must be an nn\.Conv2d, got {type(wrong).__name__}"):
            MAKE[kind](wrong)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros', got 'reflect'"):
        MAKE[kind](nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    layer = layer_of(kind)
    for bad in (torch.zeros(2, 6, 9, 9), torch.zeros(5, 9), torch.zeros(1, 1, 5, 9, 9)):
        with pytest.raises(ValueError, match=r"x must be .* with C = 5 channels, got shape \["):
            layer(bad)
    if kind == "int8":
        with pytest.raises(ValueError, match=r"at most 131071 for an exact int32 sum, got 131072"):
            MAKE[kind](nn.Conv2d(131_072, 1, 1, device="meta"))
        with pytest.raises(TypeError, match="float64"):
            MAKE[kind](nn.Conv2d(3, 4, 1).double())
    else:
        with pytest.raises(ValueError, match="mask must be bool"):
            bm.nn.SparseConv2d.from_dense(dense_conv(), torch.ones(70, 45, dtype=torch.bool))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_to_a_full_graph(kind, grad):
    torch._dynamo.reset()
    layer = layer_of(kind, "strided")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for b, order in ((2, torch.contiguous_format), (3, torch.channels_last)):  # the second makes the batch dynamic
        x = image("strided", b).to(memory_format=order).requires_grad_(grad)
        y, z = layer(x), compiled(x)
        torch.testing.assert_close(z, y)
        assert z.stride() == y.stride()
        if grad:
            inputs, weights = (x, *layer.parameters()), torch.randn_like(y)
            for a, e in zip(
                torch.autograd.grad(z, inputs, weights), torch.autograd.grad(y, inputs, weights), strict=True
            ):
                torch.testing.assert_close(a, e)


def test_export_vmap_autocast_meta_and_checkpointing(kind):
    layer, x = layer_of(kind).eval(), image()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=2, max=50)},))
    torch.testing.assert_close(program.module()(image(b=3).fill_(0.5)), layer(image(b=3).fill_(0.5)))
    many = torch.randn(3, *x.shape)
    torch.testing.assert_close(torch.func.vmap(layer)(many), torch.stack([layer(one) for one in many]))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == layer(x).shape
    x.requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, expected)


class TestCheckpoint:
    def test_round_trip(self, tmp_path):
        model = bm.sparsify_(Net(), SPARSE, lambda m, fqn: fqn == "point")
        bm.quantize_(model, INT8)
        bm.save_model(model, tmp_path / "m")
        fresh, x = bm.load_model(Net(), tmp_path / "m"), torch.randn(2, 3, 15, 15)
        assert repr(fresh) == repr(model)
        with torch.no_grad():
            assert torch.equal(fresh(x), model(x))
        again = bm.load_model(fresh, tmp_path / "m")  # into layers that are converted already
        with torch.no_grad():
            assert torch.equal(again(x), model(x))

    def test_each_shape(self, tmp_path, kind, shape):
        model = nn.Sequential(layer_of(kind, shape))
        bm.save_model(model, tmp_path / "m")
        fresh = bm.load_model(nn.Sequential(nn.Conv2d(**SHAPES[shape])), tmp_path / "m")
        assert type(fresh[0]) is CLASS[kind]
        x = image(shape)
        assert torch.equal(fresh(x), model(x))

    def test_another_window_is_refused(self, tmp_path, kind):
        bm.save_model(nn.Sequential(layer_of(kind)), tmp_path / "m")
        for other in ({"stride": 2}, {"padding": "same"}, {"out_channels": 71}, {"dilation": 2}):
            fresh = nn.Sequential(nn.Conv2d(**{**SHAPES["plain"], **other}))
            with pytest.raises(ValueError, match=r"in the model and .* in the file"):
                bm.load_model(fresh, tmp_path / "m")
            assert type(fresh[0]) is nn.Conv2d
        with pytest.raises(ValueError, match="it is a Linear"):
            bm.load_model(nn.Sequential(nn.Linear(3, 4)), tmp_path / "m")
