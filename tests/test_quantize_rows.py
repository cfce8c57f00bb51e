import math

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from shapes import EDGES, covering

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("dtype", "k"), covering(DTYPES, EDGES))
def test_equals_the_reference(isa, threads, dtype, k):
    x = (torch.randn(37, k) * torch.logspace(-6, 4, 37)[:, None]).to(dtype)
    q, scale = F.quantize_rows(x)
    q_ref, scale_ref = _reference.quantize_rows(x)
    assert torch.equal(q, q_ref)
    assert torch.equal(
        scale,
        scale_ref,
    )


def test_special_rows(isa):
    tiny = _reference.SMALLEST_QUANTIZABLE
    rows = [[0.0, -0.0, 0.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0], [-math.inf, 0.0, 1.0], [tiny, -tiny, 0.0],
            [tiny * 0.99, 0.0, 0.0], [1e-45, 0.0, 0.0], [3.4e38, -3.4e38, 1.0], [127.0, 0.5, 1.5]]  # fmt: skip
    q, scale = F.quantize_rows(torch.tensor(rows))
    assert q.tolist() == [*[[0] * 3] * 4, [127, -127, 0], *[[0] * 3] * 2, [127, -127, 0], [127, 0, 2]]
    assert scale.isnan().tolist() == [False, True, True, True, False, False, False, False, False]
    assert scale[[0, 5, 6]].tolist() == [0.0, 0.0, 0.0]


def test_strides(isa):
    base = torch.randn(40, 70)
    for x in (base.T, base[::2, ::2], base[3:, 5:], base[:1].expand(9, 70)):
        for ours, reference in zip(F.quantize_rows(x), F.quantize_rows(x.contiguous()), strict=True):
            assert torch.equal(ours, reference)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    with pytest.raises(TypeError, match=r"x must be float32.*int8"):
        F.quantize_rows(torch.zeros(2, 2, dtype=torch.int8, device=device))
    with pytest.raises(ValueError, match=r"x must have 2 dimensions, got shape \[3\]"):
        F.quantize_rows(torch.zeros(3, device=device))
