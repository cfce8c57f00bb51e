"""State dicts of the converted linear layers: canonical, checked, loaded or refused whole."""

import io

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.formats import block, csr, int8
from layers import FRESH, IN, LINEARS, OUT, dense, tensors
from torch import nn


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", LINEARS)
def test_state_dict_round_trip(kind, device, assign):
    layer, x = LINEARS[kind](), torch.randn(4, IN)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = FRESH[kind](device=device)
    if device == "meta" and not assign:
        fresh = fresh.to_empty(device="cpu")
    assert fresh.load_state_dict(state, assign=assign) == ([], [])
    assert torch.equal(fresh(x), layer(x))
    assert {n: t.dtype for n, t in tensors(fresh).items()} == {n: t.dtype for n, t in tensors(layer).items()}


def test_state_dicts_do_not_depend_on_packing():
    shapes = {n: (t.dtype, tuple(t.shape)) for n, t in LINEARS["int8"]().state_dict().items()}
    assert shapes == {
        "weight_q": (torch.int8, (OUT, IN)),
        "weight_scale": (torch.float32, (OUT,)),
        "bias": (torch.float32, (OUT,)),
    }
    shapes = {n: (t.dtype, tuple(t.shape)) for n, t in LINEARS["binary_coded"]().state_dict().items()}
    assert shapes == {
        "signs": (torch.uint8, (OUT, 3, -(-IN // 8))),
        "alpha": (torch.float16, (OUT, -(-IN // 16), 3)),
        "bias": (torch.float32, (OUT,)),
    }
    assert set(LINEARS["sparse"]().state_dict()) == {"values", "crow", "col", "bias"}
    assert set(LINEARS["block_sparse"]().state_dict()) == {"values", "crow", "col", "bias"}
    assert set(LINEARS["semi_sparse"]().state_dict()) == {"values", "index", "bias"}
    assert set(LINEARS["int8_semi_sparse"]().state_dict()) == {"values", "index", "weight_scale", "bias"}
    assert set(LINEARS["int8_sparse"]().state_dict()) == {"values", "crow", "col", "weight_scale", "bias"}


@pytest.mark.parametrize("kind", ["sparse", "int8_sparse"])
def test_sparse_state_dicts_hold_the_pattern_as_packed(kind):
    layer = LINEARS[kind]()
    if kind == "sparse":
        packed = csr.pack(layer.weight.detach(), panel=layer.panel)
    else:
        packed = block.pack(layer.weight_q, layer.panel)[:3]
    state = layer.state_dict()
    assert not torch.equal(layer.crow, packed[1]), "the layer's own rows are sorted"
    for name, want in zip(("values", "crow", "col"), packed, strict=True):
        assert torch.equal(state[name], want), name
    assert layer.state_dict(keep_vars=True)["values"].requires_grad == (kind == "sparse")


def test_int8_scale_stays_float32_when_assigned():
    state = LINEARS["int8"]().state_dict()
    state["weight_scale"] = state["weight_scale"].to(torch.bfloat16)
    fresh = FRESH["int8"]()
    fresh.load_state_dict(state, assign=True)
    assert fresh.weight_scale.dtype == torch.float32


@pytest.mark.parametrize("kind", LINEARS)
def test_a_state_dict_that_does_not_fit(kind):
    state = LINEARS[kind]().state_dict()
    int8 = dict.fromkeys(("int8", "int8_static", "int8_weight_only"), "weight_q")
    name = {**int8, "binary_coded": "signs", "semi_sparse": "index", "int8_semi_sparse": "index"}.get(kind, "col")
    with pytest.raises(RuntimeError, match=rf"Missing key.*{name}"):
        FRESH[kind]().load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        FRESH[kind]().load_state_dict({**state, "other": state["bias"]})
    with pytest.raises(RuntimeError, match=rf"{name} must be (torch\.)?u?int(8|32)"):
        FRESH[kind]().load_state_dict({**state, name: state[name].to(torch.int64)})
    with pytest.raises(RuntimeError, match="weight"):
        FRESH[kind]().load_state_dict(dense().state_dict())


@pytest.mark.parametrize("kind", ["sparse", "int8_sparse"])
def test_indices_that_the_kernels_could_not_trust_are_refused(kind):
    state = LINEARS[kind]().state_dict()

    def refused(match, **changed):
        fresh = FRESH[kind]()
        with pytest.raises(RuntimeError, match=match):
            fresh.load_state_dict({**state, **changed})
        assert fresh.col.numel() == 0, "a refused state dict changed the layer"

    crow, col = state["crow"].clone(), state["col"].clone()
    crow[3] = crow[-1] + 5
    refused("crow must not decrease", crow=crow)
    crow = state["crow"].clone()
    crow[-1] += 1
    refused("crow must run from 0 to", crow=crow)
    crow = state["crow"].clone()
    crow[0] = -1
    refused("crow must run from 0 to", crow=crow)
    refused(r"crow must be int32 \[71\], got torch.int32 \[70\]", crow=state["crow"][:-1])
    col[-1] = 200
    refused("col reaches beyond", col=col)
    col = state["col"].clone()
    col[: int(state["crow"][1])] = 0
    refused("col must increase", col=col)
    refused("values must have", values=state["values"][:-1])


@pytest.mark.parametrize("kind", ["sparse", "int8_sparse"])
def test_another_number_of_stored_weights_can_be_loaded(kind):
    a, b = LINEARS[kind](sparsity=0.9), LINEARS[kind](sparsity=0.2)
    parameter = b.values
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, IN)
    assert torch.equal(a(x), b(x))
    assert b.values is parameter or kind == "int8_sparse"


def test_packed_weights_are_those_of_the_format():
    layer = LINEARS["int8"]()
    assert torch.equal(layer.packed, int8.pack(layer.weight_q))


def test_sparse_state_dict_of_another_panel():
    """Very sparse layers are packed in wider panels; a fresh layer takes over the panel with the state dict."""
    wide = nn.Linear(300, 20)
    layer = bm.nn.SparseLinear.from_dense(wide, torch.rand(20, 300) < 0.05)
    assert layer.panel == csr.WIDE_PANEL
    fresh = bm.nn.SparseLinear(300, 20)
    assert fresh.panel == csr.PANEL
    fresh.load_state_dict(layer.state_dict())
    assert fresh.panel == csr.WIDE_PANEL
    x = torch.randn(3, 300)
    assert torch.equal(fresh(x), layer(x))
