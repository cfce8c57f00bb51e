"""Where the entries of panel-CSR weights are, as the CUDA kernels want it (csrc/cuda/sparse_bits.h): derived when a
pattern is first multiplied, on its device, and kept as long as the pattern's `col` lives and neither it nor `crow` nor
`order` is changed. Values are not part of it: kernels read them where they are, so training leaves nothing stale.

Kept by identity and version of the tensors (comparing their bytes would wait for the device): writes through ``.data``,
numpy or collectives are not seen, and need :func:`forget`. Deriving waits for the device; a pattern is multiplied once
before it is captured in a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bigmodel_ext._reference import order_rows, panel_rows_columns

UNIT = 128  # columns


@dataclass
class Pattern:
    """A pattern that was found valid, and what has been derived from it so far."""

    versions: tuple[Any, ...]
    held: tuple[Tensor, ...]  # what versions tells addresses of: no other tensor can have them
    n: int
    k: int
    panel: int
    crow: Tensor
    col: Tensor
    rows: Tensor | None  # int32 [panels * N]: the row at each place; None: in order
    runs: Tensor  # int32 [N, panels, 2]: the index of the first value of a row in a panel, and how many it has there
    masks: Tensor | None = None
    units: Tensor | None = None
    # Where panels are not multiples of 128 columns, masks and units are those of a pattern that is: its values are
    # values[source].
    source: Tensor | None = None

    @property
    def density(self) -> float:
        return self.col.shape[0] / max(self.n * self.k, 1)


_cache = WeakTensorKeyDictionary()  # by col


def _version(tensor: Tensor | None) -> tuple[int, int] | None:
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _check_crow(crow: Tensor, stored: int) -> None:
    first, last = int(crow[0]), int(crow[-1])
    if first != 0:
        raise ValueError(f"crow must begin with 0, got {first}")
    if last != stored:
        raise ValueError(f"crow must end with the number of values, {stored}, got {last}")
    counts = crow.long().diff()
    for wrong, problem in (
        (counts < 0, "crow must not decrease, got"),
        (counts > 256, "a row has at most 256 entries in a panel, crow has"),
    ):
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise ValueError(f"{problem} {int(crow[i])} and then {int(crow[i + 1])} at index {i + 1}")


def _rows(order: Tensor, n: int, panels: int) -> Tensor:
    """The row at each place of each panel, from the rows of `order`'s blocks."""
    block = order_rows(n)
    places = torch.arange(n, device=order.device)
    rows = places // block * block + order.view(panels, n).long()
    if not torch.equal(rows.sort(1).values, places.expand(panels, n)):
        raise ValueError("col or order names a place outside of W, or a column twice in one row")
    return rows.flatten().to(torch.int32)


def _derive(native: Any, pattern: Pattern, crow: Tensor, col: Tensor, rows: Tensor | None, panel: int) -> None:
    """Masks and units, where the panel allows them; else col is only checked."""
    masks = units = None
    if panel % UNIT == 0:
        masks = crow.new_zeros((pattern.n, -(-pattern.k // UNIT), 4))
        units = crow.new_zeros((pattern.n, -(-pattern.k // UNIT), 2))
    wrong = crow.new_zeros(1)
    native.sparse_derive(crow, col, rows, masks, units, wrong, pattern.n, pattern.k, panel)
    if bool(wrong):
        raise ValueError("col or order names a place outside of W, or a column twice in one row")
    pattern.masks, pattern.units = masks, units


def of(native: Any, crow: Tensor, col: Tensor, order: Tensor | None, n: int, k: int, panel: int) -> Pattern:
    """The pattern of W [N,K].

    Raises ValueError if crow, col or order are not those of such a W."""
    versions = (n, k, panel, _version(crow), _version(col), _version(order))
    found: Pattern | None = _cache.get(col)
    if found is None or found.versions != versions:
        _check_crow(crow, col.shape[0])
        panels = -(-k // panel)
        rows = None if order is None else _rows(order, n, panels)
        held = tuple(
            t.detach() for t in (crow, col, order) if t is not None
        )  # torch can't swap what has weak references
        # All is derived before what waits for the device, so that other streams and graphs find it there.
        runs = _runs(held[0].contiguous(), rows, n, panels)
        found = Pattern(versions, held, n, k, panel, held[0].contiguous(), held[1].contiguous(), rows, runs)
        _derive(native, found, found.crow, found.col, rows, panel)
        _cache[col] = found
    return found


def _runs(crow: Tensor, rows: Tensor | None, n: int, panels: int) -> Tensor:
    both = torch.stack([crow[:-1], crow.diff()], 1).view(panels, n, 2)
    if rows is not None:
        rows = rows.view(panels, n, 1).long().expand(-1, -1, 2)
        both = torch.empty_like(both).scatter_(1, rows, both)
    return both.transpose(0, 1).contiguous()


def bits(native: Any, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor | None]:
    """Masks, units, and the source of the values if they are not those of the pattern itself."""
    if pattern.masks is None:
        order = None
        if pattern.rows is not None:
            block = order_rows(pattern.n)
            order = (
                pattern.rows
                - torch.arange(pattern.rows.shape[0], device=pattern.rows.device) % max(pattern.n, 1) // block * block
            )
        rows, columns = panel_rows_columns(pattern.crow, pattern.col, pattern.n, pattern.panel, order)
        segment = columns // UNIT * pattern.n + rows
        pattern.source = (segment * UNIT + columns % UNIT).argsort()
        counts = torch.bincount(segment, minlength=-(-pattern.k // UNIT) * pattern.n)
        crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
        col = (columns % UNIT)[pattern.source].to(torch.uint8)
        _derive(native, pattern, crow, col, None, UNIT)
    assert pattern.masks is not None
    assert pattern.units is not None
    return pattern.masks, pattern.units, pattern.source


def forget(col: Tensor) -> None:
    """Free what was derived from the pattern with this col."""
    _cache.pop(col, None)


def nbytes(col: Tensor) -> int:
    """What has been derived from the pattern with this col, in bytes."""
    found = _cache.get(col)
    if found is None:
        return 0
    return sum(t.nbytes for t in (found.rows, found.runs, found.masks, found.units, found.source) if t is not None)
