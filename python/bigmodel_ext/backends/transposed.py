"""Patterns of transposed sparse weights, made in the first backward pass that needs one and kept as long as
the pattern they belong to. About 5 bytes per stored weight, and 8 per row and panel."""

from __future__ import annotations

from typing import NamedTuple

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
    crow: Tensor
    order: Tensor | None
    key: tuple[int, ...]  # sizes, and how often the three tensors have been changed in place
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


def of(crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int) -> Transposed | None:
    """The pattern's transpose, from the cache if the pattern is the same, unchanged tensors; None where changes
    can't be seen (inference tensors)."""
    if any(t is not None and t.is_inference() for t in (crow, col, order)):
        return None
    key = (n, k, panel, crow._version, col._version, -1 if order is None else order._version)
    entry = _cache.get(col)
    if entry is None or entry.crow is not crow or entry.order is not order or entry.key != key:
        entry = _cache[col] = _Entry(crow, order, key, make(crow, col, order, n, k, panel))
    found: Transposed = entry.transposed
    return found


def forget(col: Tensor) -> None:
    """Free what was kept for the pattern with this col."""
    _cache.pop(col, None)


def nbytes(col: Tensor) -> int:
    """What is kept for the pattern with this col, in bytes."""
    entry = _cache.get(col)
    return 0 if entry is None else sum(t.nbytes for t in entry.transposed if isinstance(t, Tensor))
