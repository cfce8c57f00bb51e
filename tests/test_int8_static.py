"""int8_linear and Int8Linear with one given scale for all of x."""

import copy
import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats.int8 import pack
from layers import dense
from shapes import EDGES, MNK, covering
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(m, n, k, dtype=torch.float32):
    return (
        (torch.randn(m, k) * torch.logspace(-3, 1, m)[:, None]).to(dtype),
        torch.randint(-128, 128, (n, k), dtype=torch.int8),
        torch.rand(n) * 0.01,
        torch.randn(n),
    )


def exact(x, weight, weight_scale, bias, s):
    """The definition, for finite x and s of usual size, with the sum in int64."""
    q = torch.round((x.float() * (1.0 / s)).clamp(-127, 127)).long()
    y = (q @ weight.long().T).float() * s * weight_scale
    return (y + bias.float()).to(x.dtype)


def check(x, weight, weight_scale, bias, s):
    expected = exact(x, weight, weight_scale, bias, s)
    assert torch.equal(_reference.int8_linear(x, weight, weight_scale, bias, "none", s), expected)
    for w in (weight, pack(weight)):
        assert torch.equal(F.int8_linear(x, w, weight_scale, bias, input_scale=s), expected)


@pytest.mark.parametrize(("m", "n", "k"), MNK)
def test_equals_the_definition(isa, m, n, k):
    check(*make(m, n, k, DTYPES[(m + n + k) % 3]), torch.tensor(0.02))


@pytest.mark.parametrize(("dtype", "k"), covering(DTYPES, EDGES))
def test_rounds_and_saturates(isa, dtype, k):
    """Ties, both ends and far beyond them, at every place of a row; the weights are the identity."""
    values = torch.tensor([0.5, 1.5, -2.5, 126.5, 127.5, -127.5, 128.0, -300.0, 3e4, -3e4, 0.0, -0.0, 7.4])
    x = values.repeat(k)[: 13 * k].view(13, k).to(dtype) * 0.25
    check(x, torch.eye(k, dtype=torch.int8), torch.ones(k), torch.zeros(k), torch.tensor(0.25))


@pytest.mark.parametrize("k", [3, 17, 64, 130])
def test_special_rows(isa, k):
    x, weight, weight_scale, bias = make(8, 70, k)
    for row, value in enumerate((math.nan, math.inf, -math.inf)):
        x[row, (row * 7) % k] = value
    x[3, k - 1] = -math.nan
    x[4] = torch.finfo(torch.float32).max
    for s in (0.02, 1e-30, 2.0**-119):
        y = F.int8_linear(x, weight, weight_scale, bias, input_scale=torch.tensor(s))
        assert y.isnan().all(dim=1).tolist() == [True] * 4 + [False] * 4
        wanted = _reference.int8_linear(x, weight, weight_scale, bias, "none", torch.tensor(s))
        assert torch.equal(y.nan_to_num(), wanted.nan_to_num())


def test_special_scales(isa):
    args = make(5, 70, 50)
    for s in (0.0, 2.0**-120, 1e-44):
        y = F.int8_linear(*args, input_scale=torch.tensor(s))
        assert torch.equal(y, args[3].expand(5, 70))
        assert torch.equal(_reference.int8_linear(*args, "none", torch.tensor(s)), y)
    for s in (-0.1, math.inf, -math.inf, math.nan):
        assert F.int8_linear(*args, input_scale=torch.tensor(s)).isnan().all()
        assert _reference.int8_linear(*args, "none", torch.tensor(s)).isnan().all()


@pytest.mark.cpu_only(reason="sizes at which the CPU's kernels divide their work")
def test_many_blocks_threads_and_activation(isa, threads):
    for m, n, k in ((700, 64, 257), (40, 900, 2500)):
        check(*make(m, n, k), torch.tensor(0.02))
    args, s = make(33, 70, 50), torch.tensor(0.02)
    y = F.int8_linear(*args, activation="relu", input_scale=s)
    assert torch.equal(y, F.int8_linear(*args, input_scale=s).relu())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    args = [t.to(device) for t in make(2, 70, 50)]
    cases = ((torch.ones((), dtype=torch.float64), TypeError, "input_scale must be float32, got float64"),
             (torch.ones(1), ValueError, "input_scale must have"))  # fmt: skip
    for s, error, message in cases:
        with pytest.raises(error, match=message):
            F.int8_linear(*args, input_scale=s.to(device))


def layer(**kw):
    return bm.nn.Int8Linear.from_float(dense(**kw), input_scale=0.02)


def test_layer_state_and_casts():
    static = layer()
    x = torch.randn(5, static.in_features)
    assert torch.equal(static(x), exact(x, static.weight_q, static.weight_scale, static.bias, static.input_scale))
    other = bm.nn.Int8Linear(static.in_features, static.out_features, static_input=True)
    other.load_state_dict(static.state_dict())
    assert torch.equal(other(x), static(x))
    assert torch.equal(copy.deepcopy(static)(x), static(x))
    half = copy.deepcopy(static).to(torch.bfloat16)
    assert half.input_scale.dtype == torch.float32
    assert torch.equal(half.input_scale, static.input_scale)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="input_scale"):
        bm.nn.Int8Linear(static.in_features, static.out_features).load_state_dict(static.state_dict())
    assert "static_input=True" in repr(static)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="input_scale must be a finite number"):
            bm.nn.Int8Linear.from_float(dense(), input_scale=bad)


@pytest.mark.cpu_only(reason="measures speed")
def test_checkpoint_and_explain(tmp_path):
    make_model = lambda: nn.Sequential(nn.Linear(37, 70), nn.ReLU(), nn.Linear(70, 5))  # noqa: E731
    model, x = make_model(), torch.randn(5, 37)
    model[0] = bm.nn.Int8Linear.from_float(model[0], input_scale=0.02)
    model[2] = bm.nn.Int8Linear.from_float(model[2])
    bm.fuse_activation_(model)
    bm.save_model(model, tmp_path / "model.safetensors")
    again = bm.load_model(make_model(), tmp_path / "model.safetensors")
    assert torch.equal(again(x), model(x))
    assert again[0].input_scale is not None
    assert again[2].input_scale is None
    rows = {row.fqn: row for row in bm.explain(again).layers}
    assert "one scale from calibration" in rows["0"].reason
    assert "calibration" not in rows["2"].reason


def test_compiles():
    static, x = layer(), torch.randn(5, 37)
    assert torch.equal(torch.compile(static, fullgraph=True, backend="aot_eager")(x), static(x))
