"""Binary codes: round trips, the meaning of each bit, and how well a weight is coded."""

import math

import bigmodel_ext as bm
import pytest
import torch
from bigmodel_ext.compress.measure import parameters
from bigmodel_ext.formats import binary_coded, binary_coded_fit
from torch import nn

SIZES = ((0, 0), (0, 7), (7, 0), (1, 1), (3, 8), (5, 9), (64, 127), (65, 128), (70, 129), (130, 300))
CODES = ((1, 8), (2, 16), (3, 24), (4, 64), (5, 104), (8, 1024))  # bits, group_size


def spins_of(n, bits, k):
    return torch.randint(0, 2, (n, bits, k), dtype=torch.int8) * 2 - 1


@pytest.mark.parametrize(("bits", "group_size"), CODES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_round_trips(n, k, bits, group_size):
    spins, alpha = spins_of(n, bits, k), torch.randn(n, -(-k // group_size), bits).half()
    signs = binary_coded.pack(spins)
    assert (signs.dtype, tuple(signs.shape)) == (torch.uint8, (n, bits, -(-k // 8)))
    assert torch.equal(binary_coded.unpack(signs, k), spins)
    packed, scales = binary_coded.to_panels(signs, k, group_size), binary_coded.scales_to_panels(alpha)
    words = sum(-(-min(group_size, k - start) // 16) for start in range(0, k, group_size))
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (-(-n // 64), words, bits, 64, 2))
    assert torch.equal(binary_coded.from_panels(packed, n, k, group_size), signs)
    assert torch.equal(binary_coded.scales_from_panels(scales, n), alpha)


def test_by_hand():
    spins = torch.tensor([[[1, -1, -1, 1, -1, -1, -1, -1, 1, 1], [-1] * 9 + [1]]], dtype=torch.int8)
    signs = binary_coded.pack(spins)
    assert signs.tolist() == [[[0b1001, 0b11], [0, 0b10]]]
    alpha = torch.tensor([[[1.0, 0.25], [10.0, 2.0]]])
    weight = binary_coded.decode(signs, alpha, 10, 8)
    assert weight.tolist() == [[0.75, -1.25, -1.25, 0.75, -1.25, -1.25, -1.25, -1.25, 8.0, 12.0]]
    packed = binary_coded.to_panels(signs, 10, 8)
    assert packed[0, :, :, 0].tolist() == [[[0b1001, 0], [0, 0]], [[0b11, 0], [0b10, 0]]]


@pytest.mark.parametrize(("bits", "group_size"), CODES)
def test_decode_is_the_sum_of_planes(bits, group_size):
    spins, alpha = spins_of(20, bits, 130), torch.randn(20, -(-130 // group_size), bits).half()
    wide = alpha.double().repeat_interleave(group_size, 1)[:, :130]
    expected = torch.einsum("nbk,nkb->nk", spins.double(), wide)
    decoded = binary_coded.decode(binary_coded.pack(spins), alpha, 130, group_size)
    torch.testing.assert_close(decoded.double(), expected, rtol=1e-5, atol=1e-5)


def test_bad_input():
    spins = spins_of(3, 2, 9)
    with pytest.raises(TypeError, match=r"spins must be int8 \[N, bits, K\], got torch.float32"):
        binary_coded.pack(spins.float())
    spins[1, 0, 4] = 0
    with pytest.raises(ValueError, match=r"spins must be -1 or \+1, got 0"):
        binary_coded.pack(spins)
    signs = binary_coded.pack(spins_of(3, 2, 9))
    for match, args in (
        ("signs of 20 inputs must have 3 bytes a row, got 2", (signs, 20, 8)),
        ("group_size must be a positive multiple of 8, got 9", (signs, 9, 9)),
        (r"bits must be in \[1, 8\], got 9", (signs[:, :1].expand(3, 9, 2), 9, 8)),
    ):
        with pytest.raises(ValueError, match=match):
            binary_coded.to_panels(*args)
    with pytest.raises(TypeError, match=r"signs must be uint8 \[N, bits, ceil\(K/8\)\], got torch.int32"):
        binary_coded.to_panels(signs.int(), 9, 8)


def error_of(weight, spins, alpha, group_size):
    decoded = binary_coded.decode(binary_coded.pack(spins), alpha, weight.shape[1], group_size)
    return ((decoded - weight).norm() / weight.norm()).item()


def test_one_bit_is_the_closed_form():
    """The best binary code is the sign, and the mean magnitude (Rastegari et al. 2016)."""
    weight = torch.randn(9, 100)
    spins, alpha = binary_coded_fit.fit(weight, 1, 32)
    assert torch.equal(spins[:, 0], torch.where(weight < 0, -1, 1).to(torch.int8))
    for g in range(4):
        expected = weight[:, 32 * g : 32 * g + 32].abs().mean(1)
        torch.testing.assert_close(alpha[:, g, 0].float(), expected, rtol=1e-3, atol=0)


def test_alternating_beats_greedy_and_rounding_to_nearest():
    """At the same bits and groups; rounding to nearest is the usual grid of a scale and a zero point."""
    weight = torch.randn(64, 512)
    before = math.inf
    for bits in (1, 2, 3, 4):
        greedy = error_of(weight, *binary_coded_fit.fit(weight, bits, 64, iterations=0), 64)
        fitted = error_of(weight, *binary_coded_fit.fit(weight, bits, 64), 64)
        w = weight.view(64, 8, 64)
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        step = (high - low) / (2**bits - 1)
        rounded = (((w - low) / step).round() * step + low).view_as(weight)
        nearest = ((rounded - weight).norm() / weight.norm()).item()
        # At 4 bits the grid, which may lie anywhere, is as good as a code that is symmetric about 0.
        assert fitted < nearest * (1.03 if bits == 4 else 0.95), bits
        assert fitted <= greedy < before, bits
        assert bits == 1 or fitted < 0.97 * greedy
        before = fitted


def test_what_fits_exactly_is_found():
    alpha = torch.tensor([1.0, 0.25])
    spins = spins_of(8, 2, 64)
    weight = torch.einsum("nbk,b->nk", spins.float(), alpha)
    found = binary_coded_fit.fit(weight, 2, 32)
    assert error_of(weight, *found, 32) < 1e-3


def test_special_weights():
    weight = torch.randn(4, 64)
    weight[0] = 0.0
    weight[1, 3], weight[2, 40] = math.nan, math.inf
    weight[3] = 1.0
    spins, alpha = binary_coded_fit.fit(weight, 3, 32)
    assert alpha.isnan().any(-1).tolist() == [[False, False], [True, False], [False, True], [False, False]]
    decoded = binary_coded.decode(binary_coded.pack(spins), alpha, 64, 32)
    assert torch.equal(decoded[0], weight[0])
    torch.testing.assert_close(decoded[3], weight[3], rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="a scale exceeds float16's range: the largest weight is 99999"):
        binary_coded_fit.fit(torch.full((1, 8), 99999.0), 1, 8)


class TestLayer:
    def test_from_codes(self):
        linear = nn.Linear(70, 20)
        spins, alpha = spins_of(20, 2, 70), torch.rand(20, 3, 2)
        layer = bm.nn.BinaryCodedLinear.from_codes(linear, spins, alpha, 24)
        assert layer.bias is linear.bias
        assert (layer.bits, layer.group_size) == (2, 24)
        assert torch.equal(layer.signs, binary_coded.pack(spins))
        assert torch.equal(layer.alpha, alpha.half())
        assert "bits=2, group_size=24" in repr(layer)

    @pytest.mark.parametrize(("k", "groups", "size"), [(4096, 32, 128), (70, 1, 72), (64, 2, 32)])
    def test_group_size_is_found_where_it_can_be(self, k, groups, size):
        args = spins_of(4, 2, k), torch.rand(4, groups, 2)
        assert bm.nn.BinaryCodedLinear.from_codes(nn.Linear(k, 4), *args).group_size == size

    def test_codes_that_do_not_fit(self):
        linear, spins, alpha = nn.Linear(70, 20), spins_of(20, 2, 70), torch.rand(20, 2, 2)
        make = bm.nn.BinaryCodedLinear.from_codes
        with pytest.raises(ValueError, match=r"group_size must be given: 2 groups of 70 inputs may be of \[40, 48, 56"):
            make(linear, spins, alpha)
        with pytest.raises(
            ValueError, match=r"alpha must be torch.float16 \[20, 3, 2\], got torch.float16 \[20, 2, 2\]"
        ):
            make(linear, spins, alpha, 32)
        with pytest.raises(ValueError, match=r"spins must be \[20, bits, 70\]"):
            make(linear, spins[:, :, 1:], alpha, 40)
        with pytest.raises(ValueError, match=r"alpha must be within float16's range, got 1000000\.0"):
            make(linear, spins, alpha.fill_(1e6), 40)
        with pytest.raises(TypeError, match=r"alpha must have a floating dtype, got torch\.int64"):
            make(linear, spins, alpha.long(), 40)
        with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got Conv2d"):
            make(nn.Conv2d(1, 1, 1), spins, alpha, 40)
        with pytest.raises(ValueError, match=r"bits must be in \[1, 8\], got 0"):
            bm.nn.BinaryCodedLinear(8, 8, bits=0)
        with pytest.raises(ValueError, match="group_size must be a positive multiple of 8, got 100"):
            bm.nn.BinaryCodedLinear.from_float(linear, group_size=100)

    def test_size(self):
        linear = nn.Linear(1024, 512, bias=False)
        layer = bm.nn.BinaryCodedLinear.from_float(linear, bits=3, group_size=128, iterations=1)
        resident = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
        assert resident == 1024 * 512 * 3 * (1 / 8 + 2 / 128)
        assert parameters(layer) == 1024 * 512

    def test_output_is_that_of_the_weight(self):
        linear, x = nn.Linear(256, 100), torch.randn(32, 256)
        layer = bm.nn.BinaryCodedLinear.from_float(linear, bits=4, group_size=64)
        exact = nn.functional.linear(x, layer.weight, layer.bias)
        assert ((layer(x) - exact).norm() / exact.norm()) < 0.01, "what int8 activations cost"
        assert ((layer(x) - linear(x)).norm() / linear(x).norm()) < 0.1

    def test_a_state_dict_of_another_code_is_refused(self):
        state = bm.nn.BinaryCodedLinear(64, 8, bits=3, group_size=32).state_dict()
        for other, match in (
            ({"bits": 2, "group_size": 32}, r"signs must be torch.uint8 \[8, 2, 8\], got torch.uint8 \[8, 3, 8\]"),
            ({"bits": 3, "group_size": 64}, r"alpha must be torch.float16 \[8, 1, 3\], got torch.float16 \[8, 2, 3\]"),
        ):
            with pytest.raises(RuntimeError, match=match):
                bm.nn.BinaryCodedLinear(64, 8, **other).load_state_dict(state)

    def test_files_name_the_code(self, tmp_path):
        model = nn.Sequential(bm.nn.BinaryCodedLinear.from_float(nn.Linear(48, 10), bits=2, group_size=16))
        bm.save_model(model, tmp_path / "m")
        fresh = nn.Sequential(nn.Linear(48, 10))
        bm.load_model(fresh, tmp_path / "m")
        assert (fresh[0].bits, fresh[0].group_size) == (2, 16)
        x = torch.randn(3, 48)
        assert torch.equal(fresh(x), model(x))
