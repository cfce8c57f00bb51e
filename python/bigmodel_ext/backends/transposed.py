"""Patterns of transposed sparse weights, made in the first backward pass that needs one and kept as long as
the pattern they belong to. About 6 bytes per stored weight, and 16 per row and panel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bigmodel_ext import _native

FEW_ROWS = 16  # with fewer rows of activations, permuting the values costs more than it saves


class Transposed(NamedTuple):
    """W^T [K,N] in panel-CSR, sorted; its entry i is W's entry source[i]."""

    crow: Tensor
    col: Tensor
    order: Tensor
    source: Tensor
    panel: int


class _Entry(NamedTuple):
    sizes: tuple[int, int, int]
    pattern: tuple[Tensor, ...]  # copies: .data, numpy and collectives write without being counted as changes
    transposed: Transposed


_cache = WeakTensorKeyDictionary()  # by W's col


def panel_for(nnz: int, n: int, k: int) -> int:
    """As formats.csr.panel_for, but for many rows of activations only."""
    return 256 if nnz <= 0.07 * n * k else 128


def make(crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int) -> Transposed:
    panel_t = panel_for(col.shape[0], n, k)
    segments = -(-n // panel_t) * k
    made = Transposed(
        crow.new_empty(segments + 1),
        col.new_empty(col.shape),
        crow.new_empty(segments),
        crow.new_empty(col.shape),
        panel_t,
    )
    _native.transpose_panel_csr(crow, col, order, n, k, panel, *made)
    return made


def of(crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int) -> Transposed:
    """The pattern's transpose, from the cache as long as the pattern is what it was: compared byte by byte, which costs
    2 to 5 % of the product."""
    sizes, pattern = (n, k, panel), (crow, col) if order is None else (crow, col, order)
    entry = _cache.get(col)
    same = entry is not None and entry.sizes == sizes and len(entry.pattern) == len(pattern)
    if not same or not all(map(_native.same_bytes, entry.pattern, pattern)):
        copies = tuple(t.clone(memory_format=torch.contiguous_format) for t in pattern)
        entry = _cache[col] = _Entry(sizes, copies, make(crow, col, order, n, k, panel))
    found: Transposed = entry.transposed
    return found


def forget(col: Tensor) -> None:
    """Free what was kept for the pattern with this col."""
    _cache.pop(col, None)


def nbytes(col: Tensor) -> int:
    """What is kept for the pattern with this col, in bytes."""
    entry = _cache.get(col)
    if entry is None:
        return 0
    return sum(t.nbytes for t in (*entry.pattern, *entry.transposed) if isinstance(t, Tensor))
