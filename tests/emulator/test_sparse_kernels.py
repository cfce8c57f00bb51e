"""The CUDA kernels of unstructured sparse weights one by one, about their own edges. Activations and weights are small
integers, so that every sum is exact: results are compared bit for bit."""

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext.backends.cuda import sparse as ops
from bigmodel_ext.formats import block, csr
from emulation import SCHEDULES, sites_of, unmissed

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def whole(*shape):
    return torch.randint(-2, 3, shape).float()


def sparse(n, k, sparsity):
    return torch.where(torch.rand(n, k) >= sparsity, torch.randint(1, 4, (n, k)) - 2.5, 0.0) * 2  # -3, -1, 1


def ran(native):
    """The kernels launched since the last look, less what is not under test."""
    return {r["kernel"] for r in native.take_reports()} - {"sparse_derive", "quantize_rows"}


def check(native, kernels, m, n, k, sparsity, dtype, values_dtype=None, panel=128, sort=False, offset=0):
    """Product and gradients; `kernels` are those that must have run."""
    weight = sparse(n, k, sparsity)
    pack = lambda w: csr.pack(w, weight != 0, panel)  # noqa: E731
    if sort:
        pack = lambda w: csr.sort_rows(*csr.pack(w, weight != 0, panel), n)  # noqa: E731
    values, crow, col, *order = pack(weight.to(values_dtype or dtype))
    values = torch.cat([values.new_full((offset,), torch.nan), values])[offset:]  # not aligned to 16 bytes
    order = order[0] if order else None
    x, grad, bias = whole(m, k).to(dtype), whole(m, n).to(dtype), whole(n)
    if kernels is not None:
        native.take_reports()
    y = ops.sparse_linear(native, x, values, crow, col, bias, n, panel, order)
    dx = ops.sparse_linear_grad_input(native, grad, values, crow, col, k, panel, order)
    dvalues = ops.sparse_linear_grad_values(native, grad, x, crow, col, panel, order)
    assert kernels is None or ran(native) == kernels
    assert torch.equal(y, (x.float() @ weight.T + bias).to(dtype))
    assert torch.equal(dx, (grad.float() @ weight).to(dtype))
    assert torch.equal(dvalues, pack((grad.float().T @ x.float()).to(dtype))[0])


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_masks_with_few_rows(emulated, m, dtype):
    """Eight rows to a block, eight units under way, 32 units to a lane's load."""
    kernels = {"sparse_bits", "sparse_tiles"}
    for n, k in ((7, 128), (8, 129), (9, 131), (3, 8 * 128), (2, 9 * 128 - 1), (1, 33 * 128 + 4), (2, 130)):
        check(emulated, kernels, m, n, k, 0.4, dtype, offset=(n + k) % 8)
    check(emulated, kernels, m, 17, 300, 0.0, dtype, panel=256, sort=True)
    check(emulated, kernels, m, 1, 1, 0.0, dtype)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("dtype", "values_dtype"), [(BF16, BF16), (F16, F16), (BF16, F32), (F16, F32), (F32, F32)])
def test_runs_with_few_rows(emulated, m, dtype, values_dtype):
    """Eight rows to a block, eight runs at a time, 32 entries of each; more activations than fit at a time."""
    gradients = {"sparse_spread", "sparse_gather"} if dtype is F32 else {"sparse_tiles"}
    for n, k, sparsity, panel in ((7, 128, 0.9, 128), (8, 257, 0.8, 256), (9, 9 * 128, 0.9, 128), (2, 4200, 0.95, 256)):
        check(emulated, {"sparse_rows"} | gradients, m, n, k, sparsity, dtype, values_dtype, panel, sort=n % 2 == 1)
    if values_dtype is F32:  # of any density: also rows of more than 32 entries to a run
        check(emulated, {"sparse_rows"} | gradients, m, 9, 300, 0.1, dtype, values_dtype)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("m", [9, 31, 32, 33, 63, 64, 65, 128])
def test_tiles(emulated, dtype, m):
    """32 or 64 rows of x, 64 rows and 128 columns of W, whose units are loaded four steps at a time."""
    for n, k in ((63, 127), (64, 128), (65, 129), (10, 5 * 128 + 8), (5 * 64 + 1, 40)):
        check(emulated, {"sparse_tiles"}, m, n, k, 0.5, dtype, offset=(n + m) % 8)
    check(emulated, {"sparse_tiles"}, m, 20, 200, 0.9, dtype, F32, panel=256, sort=True)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_dense_products(emulated, dtype):
    kernels = {"sparse_spread", "sparse_gather"}
    for n, k in ((7, 127), (8, 128), (9, 130)):
        check(emulated, kernels, 130, n, k, 0.5, dtype)


@pytest.mark.parametrize("panel", [1, 3, 64, 100, 200])
def test_panels_that_are_not_whole_units(emulated, panel):
    """Values are read and written through an index."""
    check(emulated, {"sparse_bits", "sparse_tiles"}, 3, 20, 300, 0.5, BF16, panel=panel, sort=True)
    check(emulated, {"sparse_tiles"}, 20, 20, 300, 0.5, BF16, panel=panel)
    check(emulated, {"sparse_rows", "sparse_spread", "sparse_gather"}, 3, 20, 300, 0.5, F32, panel=panel)


def int8_blocks(n, k, sparsity):
    keep = torch.rand(n, -(-k // 4), 1) >= sparsity
    weight = torch.where(keep, torch.randint(-128, 128, (n, -(-k // 4), 4)), 0)
    return weight.reshape(n, -1)[:, :k].to(torch.int8).contiguous()


def check_int8(native, kernel, m, n, k, sparsity, panel=128, sort=False):
    weight = int8_blocks(n, k, sparsity)
    *packed, row_sum = block.pack(weight, panel)
    values, crow, col, *order = csr.sort_rows(*packed, n) if sort else packed
    order = order[0] if order else None
    x, bias, scale = torch.randn(m, k), torch.randn(n), torch.rand(n)
    if kernel is not None:
        native.take_reports()
    y = ops.int8_sparse_linear(native, x, values, crow, col, scale, row_sum, bias, panel, order)
    assert kernel is None or ran(native) == {kernel}
    assert torch.equal(y, _reference.int8_linear(x, weight, scale, bias))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
def test_int8_with_few_rows(emulated, m):
    for n, k in ((7, 512), (8, 513), (9, 517), (3, 9 * 512)):
        check_int8(emulated, "sparse_rows", m, n, k, 0.5, sort=n % 2 == 0)


@pytest.mark.parametrize("m", [9, 31, 32, 33, 63, 64, 65, 130])
def test_int8_tiles(emulated, m):
    """32 blocks of K to a step, four steps to a load of units."""
    for n, k in ((63, 127), (64, 128), (65, 129), (10, 5 * 128 + 4), (3, 5 * 512 + 1)):
        check_int8(emulated, "sparse_int8_tiles", m, n, k, 0.5, panel=256 if n % 2 else 128, sort=n % 2 == 0)
    check_int8(emulated, "sparse_int8_tiles", m, 20, 300, 0.3, panel=3)


def products(native, *args):
    return lambda: (torch.manual_seed(3), check(native, None, *args))


# By name: a run that needs every wait of the kernel, and in how many places its kernels wait.
RUNS = {
    "sparse_bits": (lambda c: products(c, 8, 9, 2100, 0.5, BF16), 7),
    "sparse_rows": (lambda c: products(c, 8, 9, 1300, 0.9, F32), 2),
    "sparse_tiles": (lambda c: products(c, 70, 130, 400, 0.5, F16), 5),
    "sparse_int8_tiles": (lambda c: lambda: (torch.manual_seed(3), check_int8(c, None, 70, 70, 1000, 0.5)), 5),
}


@pytest.mark.parametrize("name", RUNS)
def test_schedules_agree(emulated, name):
    run = RUNS[name][0](emulated)
    try:
        for schedule, seed in SCHEDULES:
            emulated.configure(schedule=schedule, seed=seed)
            run()
    finally:
        emulated.configure()


@pytest.mark.parametrize("name", RUNS)
def test_every_wait_is_missed(emulated, name):
    run = RUNS[name][0](emulated)
    assert len(sites_of(emulated, run)) == RUNS[name][1], sites_of(emulated, run)
    # Shuffles, which do not order memory on a device, follow and bring the warp's lanes together on the emulator.
    assert {what for _, what in unmissed(emulated, run)} == (set() if name == "sparse_rows" else {"__syncwarp"})


@pytest.mark.parametrize("name", RUNS)
def test_no_bank_conflicts(emulated, name):
    run = RUNS[name][0](emulated)
    emulated.take_reports()
    run()
    assert all(report["matrix_conflicts"] == 0 for report in emulated.take_reports())
