"""Int8Linear where kernels read weights as they are written: on CUDA devices, here on a CPU that is said to be one."""

import copy

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.backends.cuda import int8 as backend
from layers import IN, OUT, dense

FORMS = {"plain": frozenset({"cpu"}), "packed": frozenset()}


@pytest.fixture
def hold(monkeypatch):
    """Sets the form in which layers hold their weights from now on."""
    return lambda form: monkeypatch.setattr(bm.nn.Int8Linear, "plain_devices", FORMS[form])


def assert_holds(layer, form):
    assert layer.packed.dim() == (2 if form == "plain" else 4)
    assert layer.packed.is_contiguous()


@pytest.mark.parametrize("static", [None, 0.02])
def test_moving_reorders(hold, static):
    source, x = dense(), torch.randn(5, IN)
    layer = bm.nn.Int8Linear.from_float(source, input_scale=static)
    expected, state = layer(x), layer.state_dict()
    for form in ("plain", "packed", "plain"):
        hold(form)
        assert layer.to("cpu") is layer
        assert_holds(layer, form)
        assert layer.weight_scale.dtype == torch.float32
        assert torch.equal(layer(x), expected)
        assert list(layer.state_dict()) == list(state)
        assert all(map(torch.equal, layer.state_dict().values(), state.values()))
        assert_holds(copy.deepcopy(layer).to(torch.bfloat16), form)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("of", "into"), [("plain", "packed"), ("packed", "plain"), ("plain", "plain")])
def test_state_dicts_have_one_form(hold, of, into, assign):
    hold(of)
    layer, x = bm.nn.Int8Linear.from_float(dense()), torch.randn(5, IN)
    assert_holds(layer, of)
    hold(into)
    other = bm.nn.Int8Linear(IN, OUT)
    assert_holds(other, into)
    other.load_state_dict(layer.state_dict(), assign=assign)
    assert_holds(other, into)
    assert torch.equal(other(x), layer(x))
    assert (other.packed.data_ptr() == layer.packed.data_ptr()) == (assign and of == into)


def test_from_meta(hold):
    layer, x = bm.nn.Int8Linear.from_float(dense()), torch.randn(5, IN)
    hold("plain")
    fresh = bm.nn.Int8Linear(IN, OUT, device="meta")
    assert_holds(fresh, "packed")  # no device yet, no kernels
    empty = copy.deepcopy(fresh).to_empty(device="cpu")
    assert_holds(empty, "plain")
    empty.load_state_dict(layer.state_dict())
    fresh.load_state_dict(layer.state_dict(), assign=True)
    assert_holds(fresh, "plain")
    for other in (empty, fresh):
        assert torch.equal(other(x), layer(x))


def test_gradients_and_files(hold, tmp_path):
    hold("plain")
    model = torch.nn.Sequential(bm.nn.Int8Linear.from_float(dense()))
    x = torch.randn(5, IN, requires_grad=True)
    model(x).sum().backward()
    plain = x.grad.clone()
    bm.save_model(model, tmp_path / "model.safetensors")
    hold("packed")
    again = bm.load_model(torch.nn.Sequential(torch.nn.Linear(IN, OUT)), tmp_path / "model.safetensors")
    assert_holds(again[0], "packed")
    assert torch.equal(again(x), model(x))
    x.grad = None
    again(x).sum().backward()
    assert torch.equal(x.grad, plain)


def test_old_devices_are_refused(monkeypatch):
    backend._device_refusal.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index else (7, 5))
    assert backend._device_refusal(torch.device("cuda:0")) == "the kernels need compute capability 8.0 or later"
    assert backend._device_refusal(torch.device("cuda:1")) is None
    assert backend.refusal(torch.ones(1)) is None
    backend._device_refusal.cache_clear()
