"""sparse_linear and its gradients on input that is damaged or bad: refused, or kept inside what was passed."""

import pytest
import torch
from bigmodel_ext import functional as F
from bigmodel_ext.backends import transposed
from bigmodel_ext.formats import csr
from sparse_cases import refused_when_read, sparse_weight

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.bigmodel_ext


@pytest.mark.parametrize("m", [1, 5, 64])
def test_wrong_order_stays_inside(isa, m):
    n, k, panel = 30, 70, 64
    *rows, order = csr.sort_rows(*csr.pack(sparse_weight(n, k, 0.3), panel=panel), n)
    x, grad = torch.randn(m, k), torch.randn(m, n)
    for wrong in (
        torch.full_like(order, 511),
        torch.full_like(order, -1),
        torch.randint_like(order, -(2**31), 2**31 - 1),
    ):
        with refused_when_read():
            assert F.sparse_linear(x, *rows, out_features=n, panel=panel, order=wrong).shape == (m, n)
        with refused_when_read(transposes=m >= transposed.FEW_ROWS):
            assert ops.sparse_linear_grad_input(grad, *rows, k, panel, wrong).shape == (m, k)
        with refused_when_read():
            assert ops.sparse_linear_grad_values(grad, x, *rows[1:], panel, wrong).shape == rows[0].shape


@pytest.mark.parametrize("damage", ["beyond the panel", "beyond K", "random"])
@pytest.mark.parametrize("m", [1, 5, 64])
def test_wrong_columns_stay_inside(isa, damage, m):
    n, k, panel = 30, 70, 64
    values, crow, col = csr.pack(sparse_weight(n, k, 0.3), panel=panel)
    col = {
        "beyond the panel": torch.full_like(col, panel),
        "beyond K": torch.full_like(col, 255),
        "random": torch.randint_like(col, 256),
    }[damage]
    x, grad = torch.randn(m, k), torch.randn(m, n)
    with refused_when_read():
        assert F.sparse_linear(x, values, crow, col, out_features=n, panel=panel).shape == (m, n)
    with refused_when_read(transposes=m >= transposed.FEW_ROWS):
        assert ops.sparse_linear_grad_input(grad, values, crow, col, k, panel).shape == (m, k)
    with refused_when_read():
        assert ops.sparse_linear_grad_values(grad, x, crow, col, panel).shape == values.shape


def every_op(x, values, crow, col, n=4, k=6, panel=8):
    grad = x.new_ones((*x.shape[:-1], n))
    return (
        lambda: F.sparse_linear(x, values, crow, col, out_features=n, panel=panel),
        lambda: ops.sparse_linear_grad_input(grad, values, crow, col, k, panel),
        lambda: ops.sparse_linear_grad_values(grad, x, crow, col, panel),
    )


@pytest.mark.cpu_only(reason="to look at indices would wait for the device")
@pytest.mark.parametrize(
    ("crow", "message"),
    [
        ([1, 1, 2, 3, 4], "crow must begin with 0, got 1"),
        ([-1, 1, 2, 3, 4], "crow must begin with 0, got -1"),
        ([0, 1, 2, 3, 3], "crow must end with the number of values, 4, got 3"),
        ([0, 1, 2, 3, 5], "crow must end with the number of values, 4, got 5"),
        ([0, 3, 2, 3, 4], "crow must not decrease, got 3 and then 2 at index 2"),
        ([0, 2**31 - 1, 2, 3, 4], "crow must not decrease, got 2147483647 and then 2 at index 2"),
        ([0, -(2**31), 2, 3, 4], "crow must not decrease, got 0 and then -2147483648 at index 1"),
    ],
)
def test_damaged_crow_is_refused(isa, crow, message):
    col = torch.zeros(4, dtype=torch.uint8)
    for call in every_op(torch.ones(2, 6), torch.ones(4), torch.tensor(crow, dtype=torch.int32), col):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.cpu_only(reason="to look at indices would wait for the device")
def test_a_row_longer_than_a_panel_is_refused(isa):
    crow, col = torch.tensor([0, 600, 600, 600, 600], dtype=torch.int32), torch.zeros(600, dtype=torch.uint8)
    for m in (1, 4):
        for call in every_op(torch.ones(m, 6), torch.ones(600), crow, col):
            with pytest.raises(ValueError, match="a row has at most 256 entries in a panel, crow has 0 and then 600"):
                call()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    make = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    good = {
        "x": make(2, 6), "values": make(3), "crow": make(5, dtype=torch.int32), "col": make(3, dtype=torch.uint8),
        "bias": None, "out_features": 4, "panel": 8,
    }  # fmt: skip

    good["crow"][1:] = 3

    def refused(error, match, **changed):
        with pytest.raises(error, match=match):
            F.sparse_linear(**{**good, **changed})

    refused(TypeError, r"x must be float32.*int32", x=make(2, 6, dtype=torch.int32))
    refused(TypeError, r"values must be float32.*float16", values=make(3, dtype=torch.float16))
    refused(ValueError, r"values must.*\[3, 1\]", values=make(3, 1))
    refused(TypeError, r"crow must be int32, got int64", crow=make(5, dtype=torch.int64))
    refused(ValueError, r"crow must have shape \[5\], got \[6\]", crow=make(6, dtype=torch.int32))
    refused(TypeError, r"order must be int32, got int16", order=make(4, dtype=torch.int16))
    refused(ValueError, r"order must have shape \[4\], got \[3\]", order=make(3, dtype=torch.int32))
    refused(TypeError, r"col must be uint8, got int8", col=make(3, dtype=torch.int8))
    refused(ValueError, r"col must have shape \[3\], got \[2\]", col=make(2, dtype=torch.uint8))
    refused(ValueError, r"x must have at least 1 dimension", x=make())
    refused(ValueError, r"panel must be in \[1, 256\], got 0", panel=0)
    refused(ValueError, r"panel must be in \[1, 256\], got 257", panel=257)
    refused(ValueError, r"out_features must not be negative, got -1", out_features=-1)
    refused(ValueError, r"bias must have shape \[4\], got \[3\]", bias=make(3))
    refused(TypeError, r"bias must be float32.*int64", bias=make(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"in_features must not be negative, got -1"):
        ops.sparse_linear_grad_input(make(2, 4), good["values"], good["crow"], good["col"], -1, 8)
    good["x"] = make(2, 6, dtype=torch.bfloat16)
    refused(TypeError, r"values must be float32 or bfloat16, got float16", values=make(3, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"x must be float32, got bfloat16"):
        ops.sparse_linear_grad_values(make(2, 4), good["x"], good["crow"], good["col"], 8)
    with pytest.raises(ValueError, match=r"grad must have"):
        ops.sparse_linear_grad_values(make(3, 4), make(2, 6), good["crow"], good["col"], 8)
