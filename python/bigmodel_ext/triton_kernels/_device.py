"""What kernels share on the device: activations and their slopes, rounding, and the bits that dropout compares.

The polynomials are those of the CPU's vector kernels (csrc/cpu/activation_vector.h, csrc/common/activation.h): their
relative errors stand beside them. exp, tanh and log1p are written out, because the device's fast versions lose relative
accuracy where results are small, and its accurate ones are not in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)  # finite float32
SMALLEST_QUANTIZABLE: tl.constexpr = tl.constexpr(2.0**-119)


@triton.jit
def widen(x):
    """To float32. The interpreter gets bfloat16's smallest numbers wrong, so there the bits are moved."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float32 -> dtype, to the nearest, ties to even. The interpreter cuts off what bfloat16 can't hold, so there the
    bits are rounded."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def whole(x):
    """To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no place for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def power_of_two(n):
    """2^n for whole n in [-126, 127], as a float."""
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_by_power_of_two(x, n):
    """x 2^n for whole n in [-252, 0]; in two steps, because 2^n may be below what float32 holds."""
    half = whole(n * 0.5)
    return x * power_of_two(half) * power_of_two(n - half)


@triton.jit
def exp_of(x):
    """exp(x) for x <= 0: 2^n exp(r) with |r| <= ln 2 / 2. Below -104 the result is 0 in float32. NaN stays NaN."""
    x = tl.where(x < -104.0, -104.0, x)
    n = whole(x * 1.44269504088896341)
    r = x - n * 0.693145751953125  # ln 2 in two parts; n times the first is exact
    r = r - n * 1.42860682030941723e-6
    y = 0.0013814540579915047 * r + 0.00836874544620514  # (exp(r) - 1 - r) / r^2, 3e-9
    y = y * r + 0.04166838899254799
    y = y * r + 0.1666652113199234
    y = y * r + 0.4999999403953552
    return scale_by_power_of_two((y * r * r + r) + 1.0, tl.where(n == n, n, 0.0))


@triton.jit
def normal_tail(a):
    """The lower tail of the normal distribution divided by exp(-a^2 / 2), a in [0, 15]: a polynomial in
    1 / (1 + a / 4), 9e-9."""
    t = 1.0 / (1.0 + 0.25 * a)
    y = 0.035009466111660004 * t - 0.20176191627979279
    y = y * t + 0.407657265663147
    y = y * t - 0.34965771436691284
    y = y * t + 0.31732815504074097
    y = y * t - 0.026913335546851158
    y = y * t + 0.12368862330913544
    y = y * t + 0.09439745539387268
    y = y * t + 0.10027579218149185
    return y * t - 2.3784143195371144e-05


@triton.jit
def normal_density(a):
    """exp(-a^2 / 2) for a in [0, 15], the square taken in two parts: its rounding would be multiplied by a^2 / 2."""
    high = (a.to(tl.uint32, bitcast=True) & 0xFFFFF000).to(tl.float32, bitcast=True)
    low = a - high
    return exp_of(-0.5 * (high * high)) * exp_of(-low * (high + 0.5 * low))


@triton.jit
def normal_below(x, density, a):
    """The share of the normal distribution below x; a = min(|x|, 15)."""
    tail = density * normal_tail(a)
    return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def at_most_15(x):
    a = tl.abs(x)
    return tl.where(a > 15.0, 15.0, a)


@triton.jit
def logistic(x):
    e = exp_of(-tl.abs(x))
    d = 1.0 / (1.0 + e)
    return tl.where(x < 0.0, e * d, d)


@triton.jit
def tanh_of(x):
    square = x * x
    y = -0.005704985000193119 * square + 0.02063908614218235  # (tanh(x) - x) / x^3, 4e-9
    y = y * square - 0.05373971536755562
    y = y * square + 0.13331441581249237
    y = y * square - 0.3333328068256378
    e = exp_of(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, y * square * x + x, tl.where(x < 0.0, -large, large))


@triton.jit
def log1p_of(u):
    """log(1 + u) for u in [0, 1], 7e-10."""
    y = 0.0020302156917750835 * u - 0.013407396152615547
    y = y * u + 0.041477929800748825
    y = y * u - 0.08244138211011887
    y = y * u + 0.12418407946825027
    y = y * u - 0.1610567718744278
    y = y * u + 0.19890743494033813
    y = y * u - 0.24987269937992096
    y = y * u + 0.33332559466362
    y = y * u - 0.4999998211860657
    return (y * u + 1.0) * u


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """float32 -> float32. NaN gives NaN."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        return tl.where(x > 0.0, x, x * 0.01)
    elif ACTIVATION == "gelu":
        a = at_most_15(x)
        return x * normal_below(x, normal_density(a), a)
    elif ACTIVATION == "silu":
        return x * logistic(x)
    elif ACTIVATION == "sigmoid":
        return logistic(x)
    elif ACTIVATION == "tanh":
        return tanh_of(x)
    elif ACTIVATION == "softplus":
        return tl.where(x <= 0.0, 0.0, x) + log1p_of(exp_of(-tl.abs(x)))
    else:
        return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """The derivative of the activation at x. ReLU's at NaN is 1, as in torch."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "leaky_relu":
        return tl.where(x > 0.0, 1.0, 0.01)
    elif ACTIVATION == "gelu":
        a = at_most_15(x)
        density = normal_density(a)
        return normal_below(x, density, a) + x * (0.398942280401432678 * density)
    elif ACTIVATION == "silu":
        e = exp_of(-tl.abs(x))
        d = 1.0 / (1.0 + e)
        s = tl.where(x < 0.0, e * d, d)
        return s * (1.0 + x * tl.where(x < 0.0, d, e * d))
    elif ACTIVATION == "sigmoid":
        e = exp_of(-tl.abs(x))
        d = 1.0 / (1.0 + e)
        return e * d * d
    elif ACTIVATION == "tanh":
        e = exp_of(-2.0 * tl.abs(x))
        d = 1.0 / (1.0 + e)
        return 4.0 * e * d * d
    elif ACTIVATION == "softplus":
        return logistic(x)
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def philox_words(seed, index):
    """Philox4x32-10 with the seed as key, for elements 8 index to 8 index + 7 (see csrc/common/philox.h)."""
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    zero = low & 0
    return tl.philox(seed, low, high, zero, zero, 10)


@triton.jit
def kept(seed, first, threshold, R: tl.constexpr, C: tl.constexpr, ALIGNED: tl.constexpr):
    """Which elements dropout keeps: bool [R,C] for the elements first[r] + c; first int64 [R]. ALIGNED: first and C are
    multiples of 8, and one block of Philox serves 8 neighbours; else each element computes its own."""
    if ALIGNED:
        index = (first >> 3)[:, None] + tl.arange(0, C // 8)[None, :]
        w0, w1, w2, w3 = philox_words(seed, index)
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
        halves = tl.join(words & 0xFFFF, words >> 16)
        return tl.reshape(halves, (R, C)).to(tl.int32) >= threshold
    element = first[:, None] + tl.arange(0, C)[None, :]
    w0, w1, w2, w3 = philox_words(seed, element >> 3)
    place = (element & 7).to(tl.int32)
    word = tl.where(place < 4, tl.where(place < 2, w0, w1), tl.where(place < 6, w2, w3))
    return ((word >> ((place & 1) * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32) >= threshold


@triton.jit
def multiply(a, b, acc):
    """acc + a @ b in float32: float32 operands are not shortened, and the interpreter, which has no bfloat16, gets
    all as float32."""
    if INTERPRETED:
        return tl.dot(widen(a), widen(b), acc)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def store_finished(out, y, bias, m, n, M, N, ACTIVATION: tl.constexpr):
    """out[m,n] = act(y + bias[n]), rounded once; y float32 [BM,BN]."""
    if bias is not None:
        y += widen(tl.load(bias + n, n < N, 0.0))[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out + at, round_to(activate(y, ACTIVATION), out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def tile_of(pid, M, N, BM: tl.constexpr, BN: tl.constexpr):
    """(m, n) of the output tile that a program computes: 8 tiles of M by all of N after each other, so that programs
    that run together share operands in the second-level cache."""
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = pid // (8 * tiles_n)
    height = tl.minimum(tiles_m - group * 8, 8)
    within = pid % (8 * tiles_n)
    return group * 8 + within % height, within // height
