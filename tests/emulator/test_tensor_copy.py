"""TMA boxes: where their bytes go in shared memory, and what happens at the tensor's edges."""

import pytest
import torch

SIZES = (40, 9, 5)  # innermost first; rows of 160 bytes
BOXES = (
    (2, 32, (8, 4, 1), (0, 0, 0)),
    (2, 0, (12, 5, 1), (4, 2, 0)),
    (2, 128, (32, 9, 1), (8, 0, 0)),
    (2, 64, (16, 8, 1), (32, 4, 0)),  # beyond in both
    (2, 0, (4, 3, 1), (-2, -1, 0)),  # before in both, inside a chunk
    (2, 0, (8, 2, 1), (38, 8, 0)),  # the edge inside a chunk
    (2, 0, (4, 2, 1), (100, 50, 0)),  # outside altogether
    (3, 128, (32, 4, 3), (4, 1, 1)),
    (3, 64, (16, 6, 4), (30, 6, 3)),
    (3, 32, (8, 3, 3), (-4, -1, -1)),
)


def offsets(box, swizzle):
    """The word in shared memory of each element of a box [z][y][x]."""
    x, y, z = box
    linear = torch.arange(x * y * z).view(z, y, x)
    if not swizzle:
        return linear
    row = torch.arange(z * y).view(z, y, 1)
    chunk = torch.arange(x) // 4
    exchanged = chunk ^ (row // (128 // swizzle)) % (swizzle // 16)
    return row * x + exchanged * 4 + torch.arange(x) % 4


def inside(box, at, rank):
    """Of a box, which elements are in the tensor, and the tensor's elements that they are."""
    coordinates = torch.meshgrid(
        *(torch.arange(n) + start for n, start in zip(box[::-1], at[::-1], strict=True)), indexing="ij"
    )
    ok = torch.ones(box[::-1], dtype=torch.bool)
    for c, size in zip(coordinates, SIZES[::-1], strict=True):
        ok &= (c >= 0) & (c < size)
    return ok, tuple(c[ok] for c in coordinates)


@pytest.mark.parametrize(("rank", "swizzle", "box", "at"), BOXES)
def test_load(kernels, schedule, rank, swizzle, box, at):
    tensor = torch.randint(1, 1 << 30, SIZES[::-1], dtype=torch.int32)
    out = torch.full((box[0] * box[1] * box[2],), -1, dtype=torch.int32)
    kernels.load_box(tensor.data_ptr(), SIZES, box, at, rank, swizzle, out.data_ptr())
    ok, elements = inside(box, at, rank)
    expected = torch.zeros(box[::-1], dtype=torch.int32)
    expected[ok] = tensor[elements]
    assert torch.equal(out[offsets(box, swizzle)], expected)


@pytest.mark.parametrize(("rank", "swizzle", "box", "at"), BOXES)
def test_store(kernels, schedule, rank, swizzle, box, at):
    tensor = torch.zeros(SIZES[::-1], dtype=torch.int32)
    shared = torch.randint(1, 1 << 30, (box[0] * box[1] * box[2],), dtype=torch.int32)
    kernels.store_box(tensor.data_ptr(), SIZES, box, at, rank, swizzle, shared.data_ptr())
    ok, elements = inside(box, at, rank)
    expected = torch.zeros_like(tensor)
    expected[elements] = shared[offsets(box, swizzle)][ok]
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("sizes", "box", "swizzle", "message"),
    [
        ((40, 9, 1), (3, 2, 1), 0, "the box's innermost 12 bytes are not a multiple of 16"),
        ((40, 9, 1), (16, 2, 1), 128, "the box's innermost 64 bytes are not the swizzle's 128"),
        ((41, 9, 1), (4, 2, 1), 0, "stride 164"),
        ((40, 9, 1), (4, 300, 1), 0, "box 300"),
        ((40, 0, 1), (4, 2, 1), 0, "size 0"),
    ],
)
def test_maps_that_are_refused(kernels, sizes, box, swizzle, message):
    tensor = torch.zeros(SIZES[::-1], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=f"make_tensor_map: {message}"):
        kernels.load_box(tensor.data_ptr(), sizes, box, (0, 0, 0), 2, swizzle, 0)
