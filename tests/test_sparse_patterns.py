"""What the CUDA kernels derive from a pattern, once: it is there for the next call, gone with the pattern, and never
stale. On the emulator."""

import copy
import gc

import pytest
import torch
from bigmodel_ext import _native
from bigmodel_ext import nn as bnn
from bigmodel_ext.backends import sparse_patterns
from bigmodel_ext.backends.cuda import sparse as ops
from bigmodel_ext.formats import csr
from sparse_cases import sparse_weight

pytestmark = pytest.mark.skipif(not _native.has_emulated(), reason="built without BIGMODEL_EMULATE")
N, K = 30, 300


@pytest.fixture
def native():
    return _native.load_emulated()


def packed(seed=0, sort=False):
    torch.manual_seed(seed)
    weight = sparse_weight(N, K, 0.5).bfloat16()
    values, crow, col, *order = (csr.pack_sorted if sort else csr.pack)(weight)
    return weight, values, crow, col, order[0] if order else None


def product(native, x, values, crow, col, order=None, panel=128):
    return ops.sparse_linear(native, x, values, crow, col, None, N, panel, order)


def assert_product(native, weight, *pattern, m=3):
    x = torch.randn(m, K).bfloat16()
    y = product(native, x, *pattern)
    torch.testing.assert_close(y, (x.float() @ weight.float().T).bfloat16())


def derived(native):
    return sum(report["kernel"] == "sparse_derive" for report in native.take_reports())


@pytest.mark.parametrize("sort", [False, True])
def test_derived_once(native, sort):
    weight, *pattern = packed(sort=sort)
    native.take_reports()
    for m in (3, 1, 20):
        assert_product(native, weight, *pattern, m=m)
    assert derived(native) == 1


def test_values_may_change(native):
    weight, values, *pattern = packed()
    native.take_reports()
    for _ in range(3):
        assert_product(native, weight, values, *pattern)
        values.mul_(2)
        weight = weight * 2
    values.data = values.data * 3  # not counted as a change
    assert_product(native, weight * 3, values, *pattern)
    assert derived(native) == 1


@pytest.mark.parametrize("sort", [False, True])
def test_a_changed_pattern_is_derived_anew(native, sort):
    _, *pattern = packed(sort=sort)
    product(native, torch.randn(3, K).bfloat16(), *pattern)
    weight = torch.zeros(N, K).bfloat16()
    weight[:, : pattern[2].numel() // N] = 1.0  # as many entries, elsewhere
    weight[0, : pattern[2].numel() - int((weight[1:] != 0).sum())] = 1.0
    other = (csr.pack_sorted if sort else csr.pack)(weight, weight != 0)
    for mine, new in zip(pattern, other, strict=False):
        mine.copy_(new)
    assert_product(native, weight, *pattern)


def test_another_tensor_in_the_place_of_crow(native):
    weight, values, crow, col, _ = packed()
    assert_product(native, weight, values, crow, col)
    for _ in range(5):
        crow = crow.clone()
        assert_product(native, weight, values, crow, col)
    wrong = torch.cat(
        [crow[:1], crow[:1], crow[2:]]
    )  # all of the first row's entries are the second's then: columns do not increase
    with pytest.raises(ValueError, match="a column twice in one row"):
        product(native, torch.ones(3, K).bfloat16(), values, wrong, col)


@pytest.mark.parametrize("panel", [128, 64])
def test_damaged_indices_are_refused(native, panel):
    """And nothing is kept of them: refused again."""
    torch.manual_seed(0)
    values, crow, col, order = csr.pack_sorted(sparse_weight(N, K, 0.3).bfloat16(), panel=panel)
    x = torch.randn(3, K).bfloat16()
    for wrong in (torch.full_like(col, panel - 1), torch.full_like(col, 255), col.flip(0)):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"col or order names|a column twice in one row"):
                product(native, x, values, crow, wrong, order, panel)
    for wrong in (torch.full_like(order, 511), torch.full_like(order, -1), torch.zeros_like(order)):
        with pytest.raises(ValueError, match="col or order names"):
            product(native, x, values, crow, col, wrong, panel)
    for wrong, message in ((crow + 1, "begin with 0, got 1"), (crow * 2, "end with the number"), (-crow, "end with")):
        with pytest.raises(ValueError, match=message):
            product(native, x, values, wrong, col, order, panel)
    falling = crow.clone()
    falling[5] = crow[7]
    with pytest.raises(ValueError, match=r"crow must not decrease, got .* at index 6"):
        product(native, x, values, falling, col, order, panel)


def test_freed_with_the_pattern_or_when_told(native):
    weight, values, crow, col, _ = packed()
    assert sparse_patterns.nbytes(col) == 0
    assert_product(native, weight, values, crow, col)
    derived = N * -(-K // 128) * (16 + 8) + N * -(-K // 128) * 8  # masks and units, and runs
    assert sparse_patterns.nbytes(col) == derived
    sparse_patterns.forget(col)
    assert sparse_patterns.nbytes(col) == 0
    assert_product(native, weight, values, crow, col)
    gc.collect()
    before = len(sparse_patterns._cache)
    del col
    gc.collect()
    assert len(sparse_patterns._cache) == before - 1


def test_inference_tensors(native):
    with torch.inference_mode():
        weight, *pattern = packed()
        assert_product(native, weight, *pattern)


def test_layers(native):
    """A pattern that was derived is neither saved nor copied, and does not keep a layer from being loaded."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(K, N, bias=False)
    layer = bnn.SparseLinear.from_dense(linear, torch.rand(N, K) > 0.5)
    x = torch.randn(4, K)
    run = lambda s: product(native, x, s.values.detach(), s.crow, s.col, s.order, s.panel)  # noqa: E731
    expected = run(layer)
    assert sparse_patterns.nbytes(layer.col) > 0
    other = copy.deepcopy(layer)
    assert sparse_patterns.nbytes(other.col) == 0
    assert torch.equal(run(other), expected)
    state = layer.state_dict()
    assert sorted(state) == ["col", "crow", "values"]
    fresh = bnn.SparseLinear.from_dense(linear, torch.rand(N, K) > 0.9)
    run(fresh)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for loaded in (fresh, other):
            loaded.load_state_dict(state)
            assert torch.equal(run(loaded), expected)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
