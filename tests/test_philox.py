"""Philox4x32-10 against the known answers published with Random123 (kat_vectors), and the masks made from it."""

import pytest
import torch
from bigmodel_ext import _native, _reference

ONES = 0xFFFFFFFF
# counter, key, answer; the last counter and key are the first digits of pi.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert tuple(_native.philox_4x32(counter, key)) == answer
    words = _reference.philox_4x32([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in words) == answer


def mask_at(block: int, seed: int, numel: int, p: float) -> torch.Tensor:
    out = torch.empty(numel)
    _native.fused_dropout_at(torch.ones(numel), torch.tensor(seed), out, p, block)
    return out != 0


def mask_from_words(block: int, seed: int, numel: int, p: float) -> torch.Tensor:
    """Element by element from the definition, through the C++ generator that the known answers have checked."""
    key = (seed & ONES, (seed >> 32) & ONES)
    keep = []
    for i in range(numel):
        index = (block + i // 8) % 2**64
        word = _native.philox_4x32((index & ONES, index >> 32, 0, 0), key)[i % 8 // 2]
        keep.append((word >> (16 * (i % 2)) & 0xFFFF) >= _reference.dropout_threshold(p))
    return torch.tensor(keep)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [0, 1, 2**32 - 3, 2**32, 2**40 + 5, 2**64 - 2])
def test_masks_follow_the_definition_where_the_counter_crosses_words(isa, seed, block):
    assert torch.equal(mask_at(block, seed, 203, 0.4), mask_from_words(block, seed, 203, 0.4))


@pytest.mark.parametrize("seed", SEEDS)
def test_reference_follows_the_definition(seed):
    assert torch.equal(_reference.dropout_keep(203, seed, 0.4), mask_from_words(0, seed, 203, 0.4))


def test_every_half_of_every_word_is_used():
    # Elements 8k + j for each j behave as independent draws: every residue class has its own mask.
    mask = _reference.dropout_keep(8 * 4096, 7, 0.5).reshape(-1, 8)
    for a in range(8):
        for b in range(a):
            agreement = (mask[:, a] == mask[:, b]).float().mean().item()
            assert abs(agreement - 0.5) < 5 * 0.5 / 4096**0.5, (a, b, agreement)
