"""The fragments of mma, mma.sp and ldmatrix against the PTX ISA's index formulas ("Matrix fragments for ...") and a
plain product. The formulas give (row, column) of a lane's i-th element, from the low bits of its first register up."""

import pytest
import torch

LANES = range(32)


def a_dense(lane, i, per):  # per: elements to a register
    row = lane // 4 + 8 * (i // per % 2)
    return row, lane % 4 * per + i % per + 4 * per * (i // (2 * per))


def b_element(lane, i, per):
    return lane % 4 * per + i % per + 4 * per * (i // per), lane // 4


def c_element(lane, i):
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


def fragment(matrix, where, count, per):
    """Registers [32, count / per] of a matrix of bit patterns (int64)."""
    bits = 32 // per
    out = torch.zeros(32, count // per, dtype=torch.int64)
    for lane in LANES:
        for i in range(count):
            out[lane, i // per] |= int(matrix[where(lane, i, per)]) << (bits * (i % per))
    return (out - ((out >> 31) << 32)).to(torch.int32)


def bits_of(x):
    return x.view(torch.uint8 if x.dtype is torch.int8 else torch.int16).long() & (
        255 if x.dtype is torch.int8 else 65535
    )


def numbers(shape, dtype):
    if dtype is torch.int8:
        return torch.randint(-128, 128, shape, dtype=torch.int8)
    return torch.randint(-8, 9, shape).to(dtype)  # their sums are exact


def metadata_words(positions, per, selector):
    """positions: [16 rows, kept elements]; the lanes that a selector leaves out get garbage."""
    words = torch.randint(1 << 31, (32, 1))
    for lane in LANES:
        group, t = lane // 4, lane % 4
        if per == 4:
            values = positions[group + 8 * (t % 2), 16 * (t // 2) : 16 * (t // 2) + 16]
        elif t // 2 == selector:
            part = slice(8 * (t % 2), 8 * (t % 2) + 8)
            values = torch.cat([positions[group, part], positions[group + 8, part]])
        else:
            continue
        words[lane] = sum(int(v) << (2 * i) for i, v in enumerate(values))
    return (words - ((words >> 31) << 32)).to(torch.int32)


def check(d, before, product, kind):
    dtype = torch.int32 if "s8" in kind else torch.float32
    for lane in LANES:
        for i in range(4):
            row, column = c_element(lane, i)
            assert d.view(dtype)[lane, i] == before.view(dtype)[lane, i] + product[row, column], (lane, i)


DTYPE = {"s8": torch.int8, "bf16": torch.bfloat16, "f16": torch.float16}


def accumulators(kind):
    d = torch.randint(-1000, 1000, (32, 4), dtype=torch.int32)
    return d if "s8" in kind else d.float().view(torch.int32)


@pytest.mark.parametrize("kind", DTYPE)
def test_mma(emulated, kind):
    dtype, per = DTYPE[kind], 4 if kind == "s8" else 2
    a, b = numbers((16, 8 * per), dtype), numbers((8 * per, 8), dtype)
    registers = fragment(bits_of(a), a_dense, 4 * per, per), fragment(bits_of(b), b_element, 2 * per, per)
    before = accumulators(kind)
    d = before.clone()
    emulated.mma_fragments(kind, *registers, torch.zeros(32, 1, dtype=torch.int32), d)
    check(d, before, (a.double() @ b.double()), kind)


@pytest.mark.parametrize(
    ("kind", "selector"), [("s8", 0), ("bf16", 0), ("bf16", 1), ("f16", 0), ("f16", 1)], ids=lambda v: str(v)
)
def test_sparse_mma(emulated, kind, selector):
    dtype, per = DTYPE[kind], 4 if kind == "s8" else 2
    kept, k = 8 * per, 16 * per
    values, b = numbers((16, kept), dtype), numbers((k, 8), dtype)
    positions = torch.stack([torch.randperm(4)[:2].sort().values for _ in range(8 * kept)]).view(16, kept)
    a = torch.zeros(16, k, dtype=dtype)
    a.scatter_(1, positions + torch.arange(kept) // 2 * 4, values)
    before = accumulators(kind)
    d = before.clone()
    name = f"sparse_{kind}" + ("" if kind == "s8" else f"_{selector}")
    emulated.mma_fragments(
        name,
        fragment(bits_of(values), a_dense, 4 * per, per),
        fragment(bits_of(b), b_element, 4 * per, per),
        metadata_words(positions, per, selector),
        d,
    )
    check(d, before, a.double() @ b.double(), kind)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_load_matrix(emulated, matrices, transposed):
    image = torch.randint(256, (4096,), dtype=torch.uint8)
    offsets = torch.randperm(256)[:32].int()[:, None] * 16
    out = torch.zeros(32, matrices, dtype=torch.int32)
    emulated.load_matrix_fragments(transposed, image, offsets, out)
    halves = out.view(torch.int16).view(32, matrices, 2)
    rows = image.view(torch.int16).view(256, 8)[offsets[:, 0].long() // 16]  # of 8 halves, by lane
    for lane in LANES:
        for m in range(matrices):
            for half in range(2):
                row, column = lane // 4, lane % 4 * 2 + half
                if transposed:
                    row, column = column, row
                assert halves[lane, m, half] == rows[8 * m + row, column]


def operand_image(rows, swizzle, stride, leading, inside):
    """Where a K-major operand of [64, 32 bytes] lies: chunk c of row r, by the patterns that the PTX ISA shows."""
    image = torch.randint(256, (16384,), dtype=torch.uint8)
    for r in range(64):
        for c in range(2):
            at = r // 8 * stride
            if swizzle:
                chunk = inside // 16 + c
                exchanged = chunk ^ (r % 8 // (128 // swizzle)) % (swizzle // 16)
                at += r % 8 * swizzle + exchanged * 16
            else:
                at += r % 8 * 16 + c * leading + inside
            image[at : at + 16] = rows[r, 16 * c : 16 * c + 16]
    return image


@pytest.mark.parametrize(
    ("swizzle", "stride", "leading", "inside"),
    [(128, 1024, 16, 0), (128, 2048, 16, 96), (64, 512, 16, 32), (32, 256, 16, 0), (0, 128, 1024, 0), (0, 256, 128, 0)],
)
@pytest.mark.parametrize("kind", DTYPE)
def test_wgmma(emulated, kind, swizzle, stride, leading, inside):
    k = 32 if kind == "s8" else 16
    a, b = numbers((64, k), DTYPE[kind]), numbers((64, k), DTYPE[kind])
    images = [operand_image(m.view(torch.uint8), swizzle, stride, leading, inside) for m in (a, b)]
    d = torch.zeros(128, 32, dtype=torch.int32)
    emulated.wgmma_fragments(kind, swizzle, stride, leading, inside, torch.cat(images), d)
    product, d = a.double() @ b.double().T, d if kind == "s8" else d.view(torch.float32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(32):
            row, column = c_element(lane, i % 4)
            assert d[thread, i] == product[16 * warp + row, 8 * (i // 4) + column]
