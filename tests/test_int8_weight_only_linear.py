import copy
import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext import functional as F
from bigmodel_ext.compress.quantize import Int8WeightOnlyConfig, quantize_
from bigmodel_ext.formats.int8 import pack
from layers import dense
from shapes import MNK, RANDOM
from tolerances import assert_as_accurate, terms
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BIAS_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)


def make(m, n, k, dtype=torch.float32, bias_dtype=torch.float32):
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype)
    return torch.randn(m, k).to(dtype), torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n) * 0.01, bias


def check(x, weight, weight_scale, bias):
    """Against float64; torch's own product in x's dtype, or the float32 one where that is float32."""
    dequantized = weight.double() * weight_scale.double()[:, None]
    exact = nn.functional.linear(x.double(), dequantized, None if bias is None else bias.double())
    theirs = _reference.int8_weight_only_linear(x, pack(weight), weight_scale, bias)
    scale = terms(x.float(), dequantized.T) + (0.0 if bias is None or not len(bias) else float(bias.abs().max()))
    assert_as_accurate(F.int8_weight_only_linear(x, pack(weight), weight_scale, bias), theirs, exact, scale)


@pytest.mark.parametrize(("m", "n", "k"), [*MNK, *RANDOM[:100]])
def test_as_accurate_as_torch(float_isa, m, n, k):
    check(*make(m, n, k, DTYPES[(m + n + k) % 3], BIAS_DTYPES[(m + 2 * n + k) % 5]))


def test_one_weight_at_a_time(float_isa):
    """Every place of a panel, every row of a tile: exact, as nothing is rounded."""
    for m in range(1, 14):
        x = torch.eye(m, 9) + 2 * torch.eye(m, 9).roll(4, 1)
        weight = torch.randint(-128, 128, (70, 9), dtype=torch.int8)
        wanted = x @ weight.float().T
        assert torch.equal(F.int8_weight_only_linear(x, pack(weight), torch.ones(70)), wanted)


@pytest.mark.cpu_only(reason="sizes at which the CPU's kernels divide their work")
def test_many_blocks_and_threads(float_isa, threads):
    for m, n, k in ((300, 200, 700), (130, 70, 2500), (1, 900, 600)):
        check(*make(m, n, k))


def test_special_values_and_activation(float_isa):
    x, weight, weight_scale, bias = make(5, 70, 50)
    x[1, 3], x[2, 49] = math.nan, math.inf
    packed = pack(weight)
    y = F.int8_weight_only_linear(x, packed, weight_scale, bias)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[[0, 3, 4]].isfinite().all()
    plain = F.int8_weight_only_linear(x[3:], packed, weight_scale, bias)
    assert torch.equal(F.int8_weight_only_linear(x[3:], packed, weight_scale, bias, activation="relu"), plain.relu())


def test_leading_dimensions_and_strides(float_isa):
    x, weight, weight_scale, bias = make(24, 70, 50)
    packed = pack(weight)
    wanted = F.int8_weight_only_linear(x, packed, weight_scale, bias)
    assert torch.equal(F.int8_weight_only_linear(x.view(2, 3, 4, 50), packed, weight_scale, bias).view(24, 70), wanted)
    assert F.int8_weight_only_linear(x[:0], packed, weight_scale, bias).shape == (0, 70)
    spread = torch.zeros(24, 100)[:, ::2].copy_(x)
    assert torch.equal(F.int8_weight_only_linear(spread, packed, weight_scale, bias), wanted)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device):
    x, weight, scale, bias = (t.to(device) for t in make(2, 70, 50))
    packed = torch.empty(2, 14, 64, 4, dtype=torch.int8, device=device)
    for args, error, message in (
        ((x.double(), packed, scale, bias), TypeError, r"x must be float32.*got float64"),
        ((x, weight, scale, bias), ValueError, r"packed weight must have"),
        ((x, packed.float(), scale, bias), TypeError, r"weight must be int8, got float32"),
        ((x[:, :48], packed, scale, bias), ValueError, r"packed weight must have shape \[2, 13, 64, 4\]"),
        ((x, packed, scale.double(), bias), TypeError, r"weight_scale must be float32, got float64"),
        ((x, packed, scale, bias[:9]), ValueError, r"bias must have shape \[70\], got \[9\]"),
    ):
        with pytest.raises(error, match=message):
            F.int8_weight_only_linear(*args)
    with pytest.raises(ValueError, match="x must have 50 features"):
        F.int8_weight_only_linear(torch.ones(3, 49), pack(make(2, 70, 50)[1]), torch.ones(70), in_features=50)


@pytest.mark.cpu_only("names the CPU's kernel")
def test_layer(tmp_path):
    linear, x = dense(), torch.randn(9, 37)
    layer = bm.nn.Int8WeightOnlyLinear.from_float(linear)
    assert_as_accurate(layer(x), nn.functional.linear(x, layer.weight, layer.bias),
                       nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()))  # fmt: skip
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    int8 = bm.nn.Int8Linear.from_float(linear)
    other = bm.nn.Int8WeightOnlyLinear(37, 70)
    other.load_state_dict(int8.state_dict())
    assert torch.equal(other(x), layer(x))
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    make_model = lambda: nn.Sequential(nn.Linear(37, 70), nn.ReLU())  # noqa: E731
    model = make_model()
    report = quantize_(model, Int8WeightOnlyConfig(rows=()), lambda m: m(x))
    assert type(model[0]) is bm.nn.Int8WeightOnlyLinear
    assert report["0"].output_error < 0.01
    bm.fuse_activation_(model)
    bm.save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(bm.load_model(make_model(), tmp_path / "m.safetensors")(x), model(x))
    row = bm.explain(model).layers[0]
    assert row.kernel.startswith("cpu/int8_weight_only_linear")
    assert "computes relu too" in row.reason


@pytest.mark.cpu_only("compares with another layer")
def test_activations_keep_their_precision():
    """One huge channel costs a dynamic int8 layer its small ones, and a weight-only one nothing."""
    linear, x = nn.Linear(64, 64), torch.randn(50, 64)
    x[:, 3] = 1000.0
    with torch.no_grad():
        linear.weight[:, 3] = 0.0
    wanted = linear(x).detach()
    errors = [float((kind.from_float(linear)(x) - wanted).detach().norm() / wanted.norm())
              for kind in (bm.nn.Int8WeightOnlyLinear, bm.nn.Int8Linear)]  # fmt: skip
    assert errors[0] < 0.01 < 0.1 < errors[1]
