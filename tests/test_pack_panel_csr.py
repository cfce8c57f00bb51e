"""Packing and transposing patterns: equal, bit for bit, to the reference on every instruction set."""

import gc
import math

import pytest
import torch
from bigmodel_ext import _native, _reference, nn
from bigmodel_ext import functional as F
from bigmodel_ext.backends import transposed
from bigmodel_ext.formats import block, csr
from sparse_cases import PANELS, SPARSITIES, int8_block_weight, sparse_weight, strange_views
from tolerances import assert_as_accurate

SIZES = ((0, 7), (7, 0), (1, 1), (5, 127), (7, 129), (64, 257), (1100, 40))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32)


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(bits(a), bits(b))


def bits(t):
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]) if t.element_size() > 1 else t


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sort", [False, True])
def test_packs_as_the_reference_does(dtype, sort, float_isa):
    for n, k in SIZES:
        for sparsity in SPARSITIES[1:3]:
            weight = (3 * sparse_weight(n, k, sparsity)).to(dtype)
            for panel in (16, 128):
                for mask in (None, torch.rand(n, k) < 0.3):
                    args = (weight, mask, panel, sort)
                    assert_same(torch.ops.bigmodel_ext.pack_panel_csr(*args), _reference.pack_panel_csr(*args))


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_what_counts_as_zero(dtype, float_isa):
    weight = torch.tensor([[0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf]], dtype=dtype)
    weight = torch.cat([weight, torch.full((1, 1), torch.finfo(dtype).smallest_normal / 4, dtype=dtype)], 1)
    values, _, col = csr.pack(weight)
    assert col.tolist() == [2, 3, 4, 5, 6]
    assert torch.equal(bits(values), bits(weight[0, 2:]))
    values, _, col = csr.pack(weight, torch.ones_like(weight, dtype=torch.bool))  # explicit zeros, of either sign
    assert col.tolist() == [*range(7)]
    assert torch.equal(bits(values), bits(weight[0]))


def test_packs_strided_weights_and_masks(float_isa):
    weight = sparse_weight(33, 70, 0.5)
    wanted = csr.pack_sorted(weight.contiguous())
    for name, view in strange_views(weight).items():
        assert_same(csr.pack_sorted(view), wanted), name
        assert_same(csr.pack_sorted(torch.ones(33, 70), (weight != 0).t().contiguous().t())[1:], wanted[1:])


def test_int8_blocks_as_the_reference_packs_them(float_isa):
    for n, k in SIZES:
        for panel in (16, 128):
            weight = int8_block_weight(n, k, 0.5)
            padded = torch.nn.functional.pad(weight, (0, -k % 4)).view(n, -(-k // 4), 4)
            mask = (padded != 0).any(-1)
            numbers = torch.arange(mask.numel()).view(mask.shape).int()
            index, crow, col, order = _reference.pack_panel_csr(numbers, mask, panel, True)
            wanted = (padded.flatten(0, 1)[index.long()], crow, col, order, weight.sum(1, dtype=torch.int32))
            assert_same(block.pack_sorted(weight, panel), wanted)
            assert_same(
                block.pack_sorted(torch.cat([weight[:0].new_ones(1), weight.flatten()])[1:].view(n, k)),
                (block.pack_sorted(weight)),
            )  # not aligned to 4 bytes


def test_the_same_on_any_number_of_threads(threads):
    weight = sparse_weight(1500, 700, 0.7)
    packed = csr.pack_sorted(weight)
    assert_same(packed, _reference.pack_panel_csr(weight, None, csr.PANEL, True))
    wanted = _reference.pack_panel_csr(weight.T, None, 128, True)
    assert_same(transposed.make(*packed[1:], 1500, 700, csr.PANEL)[:3], wanted[1:])


def test_a_weight_that_changes_while_it_is_packed_is_noticed(float_isa):
    weight = sparse_weight(40, 300, 0.5)
    values, crow, col, order = csr.pack_sorted(weight)
    for changed in (torch.ones_like(weight), torch.zeros_like(weight)):
        with pytest.raises(RuntimeError, match="changed while it was being packed"):
            _native.fill_panel_csr(changed, None, csr.PANEL, crow, order, values.clone(), col.clone())


def test_pack_refuses():
    with pytest.raises(TypeError, match=r"weight must be .* got int8"):
        csr.pack(torch.ones(2, 2, dtype=torch.int8))
    weight = torch.ones(20, 30)
    _, crow, col, order = csr.pack_sorted(weight)
    bad = col.clone()
    bad[3] = 200
    twice = col.clone()
    twice[:30] = 5
    with pytest.raises(ValueError, match="col or order names"):
        transposed.make(crow, bad, order, 20, 30, csr.PANEL)
    with pytest.raises(ValueError, match="col or order names"):
        transposed.make(crow, col, torch.zeros_like(order), 20, 30, csr.PANEL)
    for wrong in (-1, 20, 511):
        with pytest.raises(ValueError, match="col or order names"):
            transposed.make(crow, col, torch.full_like(order, wrong), 20, 30, csr.PANEL)
    with pytest.raises(ValueError, match="a column twice in one row"):
        transposed.make(crow, torch.full_like(col, 5), order, 20, 30, csr.PANEL)
    crow = torch.full_like(crow, 600)
    crow[0] = 0
    with pytest.raises(ValueError, match="a row has at most 256 entries in a panel"):
        transposed.make(crow, col, order, 20, 30, csr.PANEL)


@pytest.mark.parametrize("panel", PANELS)
def test_transposes_as_packing_the_transpose_does(panel):
    for n, k in SIZES:
        for sparsity in SPARSITIES:
            weight = sparse_weight(n, k, sparsity)
            for packed in (csr.pack_sorted(weight, panel=panel), (*csr.pack(weight, panel=panel), None)):
                made = transposed.make(*packed[1:], n, k, panel)
                values, *wanted = _reference.pack_panel_csr(weight.T, None, made.panel, True)
                assert_same(made[:3], wanted)
                assert torch.equal(packed[0][made.source.long()], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m", [1, 15, 16, 17, 70])
def test_gradient_of_the_input_by_either_way(dtype, m, float_isa):
    weight = sparse_weight(150, 270, 0.6).to(dtype)
    values, crow, col, order = csr.pack_sorted(weight)
    grad = torch.randn(m, 150).to(dtype)
    for w in (values, values.float()):
        found = torch.ops.bigmodel_ext.sparse_linear_grad_input(grad, w, crow, col, 270, csr.PANEL, order)
        assert_as_accurate(found, grad @ weight, grad.double() @ weight.double(), scale=40.0)
    assert (transposed.nbytes(col) > 0) == (m >= transposed.FEW_ROWS)


def backward(layer, m=20):
    x = torch.randn(m, layer.in_features, requires_grad=True)
    grad = torch.randn(m, layer.out_features)
    layer(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ layer.weight.detach())


def test_the_transpose_is_kept_until_the_pattern_changes(monkeypatch):
    made = []
    make = transposed.make
    monkeypatch.setattr(transposed, "make", lambda *args: made.append(1) or make(*args))
    linear = torch.nn.Linear(60, 50)
    layer = nn.SparseLinear.from_dense(linear, torch.rand(50, 60) < 0.4)
    backward(layer)
    with torch.no_grad():
        layer.values.mul_(2)  # values may change
    backward(layer)
    assert len(made) == 1
    with torch.no_grad():  # the same number of entries elsewhere, in the same tensors
        layer.load_state_dict(nn.SparseLinear.from_dense(linear, torch.rand(50, 60) < 0.4).state_dict())
    backward(layer)
    assert len(made) == 2
    weight = sparse_weight(50, 60, 0.6)
    one, other = csr.pack_sorted(weight), csr.pack_sorted(weight.flip(1))
    layer.resize(one[2].numel())
    for packed in (one, other):  # a user who writes into the buffers
        for to, of in zip((layer.values, layer.crow, layer.col, layer.order), packed, strict=True):
            to.detach().copy_(of)
        backward(layer)
    assert len(made) == 4
    assert transposed.nbytes(layer.col) > 5 * layer.nnz
    layer.eval()
    assert transposed.nbytes(layer.col) == 0
    backward(layer)
    count = len(transposed._cache)
    del layer
    gc.collect()
    assert len(transposed._cache) < count


@pytest.mark.parametrize("write", [lambda to, of: to.data.copy_(of), lambda to, of: to.numpy().__setitem__(..., of)])
def test_writes_that_torch_does_not_count_are_seen(write):
    """As a broadcast of buffers does."""
    weight = sparse_weight(50, 64, 0.6)
    one, other = csr.pack_sorted(weight), csr.pack_sorted(weight.flip(1))
    layer = nn.SparseLinear.from_dense(torch.nn.Linear(64, 50), weight != 0)
    for packed in (one, other):
        for to, of in zip((layer.values, layer.crow, layer.col, layer.order), packed, strict=True):
            write(to.detach(), of)
        backward(layer)


def test_a_state_dict_is_loaded_by_swapping_after_a_backward_pass():
    layer = nn.SparseLinear.from_dense(torch.nn.Linear(60, 50), torch.rand(50, 60) < 0.4)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    backward(layer)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(state)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    backward(layer)


def test_the_transpose_is_kept_under_compile(monkeypatch):
    made = []
    make = transposed.make
    monkeypatch.setattr(transposed, "make", lambda *args: made.append(1) or make(*args))
    layer = nn.SparseLinear.from_dense(torch.nn.Linear(40, 30), torch.rand(30, 40) < 0.4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = torch.randn(20, 40, requires_grad=True)
        compiled(x).sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(20, -1))
    assert len(made) == 1


def test_packing_under_a_gradient():
    weight = torch.randn(20, 30, requires_grad=True)
    values, crow, col, order = csr.pack_sorted(weight, torch.rand(20, 30) < 0.5)
    y = F.sparse_linear(torch.ones(1, 30), values, crow, col, out_features=20, panel=csr.PANEL, order=order)
    y.sum().backward()
    assert torch.equal(weight.grad, csr.mask_of(crow, col, 20, 30, csr.PANEL, order).float())
