"""Panel-CSR: an unstructured sparse matrix W [N,K] cut into panels of `panel` columns, each in CSR order.

    values [nnz]                      stored entries; panel by panel, in it row by row, in it by column
    col    uint8 [nnz]                column within the panel (so a panel has at most 256)
    crow   int32 [panels * N + 1]     where row n of panel p begins: crow[p * N + n]

One byte of index per entry, and a kernel that keeps a panel's activations in cache reads the matrix front to back.

The rows of each block of `order_rows(N)` (at most 512) may also be stored in any other order, panel by panel another:

    order  int32 [panels * N]         at place n of panel p is its block's row order[p * N + n]

Layers hold the matrix sorted by :func:`sort_rows` and nothing else; files hold it unsorted, without `order`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference import move_rows, order_rows, panel_rows_columns, sparse_to_dense
from bigmodel_ext._reference import sort_rows as _sort_rows

PANEL = 128
WIDE_PANEL = 256


def require_panel(panel: int) -> None:
    """Raises ValueError unless 1 <= panel <= 256: an index byte reaches no further."""
    if not 1 <= panel <= 256:
        raise ValueError(f"panel must be in [1, 256], got {panel}")


def panel_for(density: float) -> int:
    """A panel for a share of stored entries: 128 columns of activations fit the first-level cache, but where few
    entries are stored, longer rows save as much as the cache loses, and for a single row of activations more."""
    return WIDE_PANEL if density <= 0.12 else PANEL


def panel_of(crow: Tensor, out_features: int, in_features: int) -> int | None:
    """Which of the two panels that panel_for chooses from an index of this length was packed with, or None."""
    fits = [p for p in (PANEL, WIDE_PANEL) if tuple(crow.shape) == (-(-in_features // p) * out_features + 1,)]
    return fits[0] if fits else None  # where both fit there is one panel at most, and they are the same


def pack(weight: Tensor, mask: Tensor | None = None, panel: int = PANEL) -> tuple[Tensor, Tensor, Tensor]:
    """Dense [N,K] -> (values, crow, col). Entries where mask (default: weight != 0, so NaN too) is True are stored.

    weight: float32, float64, bfloat16, float16 or int32.
    """
    return _pack(weight, mask, panel, False)[:3]


def pack_sorted(
    weight: Tensor, mask: Tensor | None = None, panel: int = PANEL
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`pack` and :func:`sort_rows` in one: (values, crow, col, order)."""
    return _pack(weight, mask, panel, True)


def _pack(weight: Tensor, mask: Tensor | None, panel: int, sort: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.bigmodel_ext.pack_panel_csr(weight, mask, panel, sort)
    return packed


def rows_in_order(out_features: int, panels: int, device: torch.device | str | None = None) -> Tensor:
    """`order` int32 [panels * N] of a matrix whose rows are where :func:`pack` put them."""
    rows = torch.arange(out_features, device=device) % order_rows(out_features)
    return rows.to(torch.int32).repeat(panels)


def sort_rows(values: Tensor, crow: Tensor, col: Tensor, out_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`pack` returned -> (values, crow, col, order): in each panel the rows of each block by their number of
    entries. Runs of rows of one length are what the kernels multiply fastest."""
    return _sort_rows(values, crow, col, out_features)


def unsort_rows(
    values: Tensor, crow: Tensor, col: Tensor, out_features: int, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`sort_rows`: (values, crow, col) as :func:`pack` made them."""
    n, block = max(out_features, 1), order_rows(out_features)
    segments = torch.arange(order.shape[0], device=crow.device)
    return move_rows(values, crow, col, (segments - segments % n % block + order).argsort())


def unpack(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    out_features: int,
    in_features: int,
    panel: int = PANEL,
    order: Tensor | None = None,
) -> Tensor:
    """The inverse of :func:`pack`, and of :func:`sort_rows` after it: dense [N,K]."""
    return sparse_to_dense(values, crow, col, out_features, in_features, panel, order)


def mask_of(
    crow: Tensor, col: Tensor, out_features: int, in_features: int, panel: int = PANEL, order: Tensor | None = None
) -> Tensor:
    """bool [N,K]: which entries are stored."""
    rows, columns = panel_rows_columns(crow, col, out_features, panel, order)
    mask = torch.zeros((out_features, in_features), dtype=torch.bool, device=crow.device)
    mask[rows, columns] = True
    return mask


def invalid(crow: Tensor, col: Tensor, out_features: int, in_features: int, panel: int = PANEL) -> str | None:
    """What is wrong with these indices (the kernels trust them), or None. Meta tensors pass: they hold nothing."""
    entries = -(-in_features // panel) * out_features + 1
    if crow.dtype != torch.int32 or tuple(crow.shape) != (entries,):
        return f"crow must be int32 [{entries}], got {crow.dtype} {list(crow.shape)}"
    if col.dtype != torch.uint8 or col.dim() != 1:
        return f"col must be uint8 [nnz], got {col.dtype} {list(col.shape)}"
    if crow.is_meta or col.is_meta:
        return None
    if int(crow[0]) != 0 or int(crow[-1]) != col.shape[0]:
        return f"crow must run from 0 to {col.shape[0]}, got {int(crow[0])} to {int(crow[-1])}"
    if bool((crow[1:] < crow[:-1]).any()):
        return "crow must not decrease"
    rows, columns = panel_rows_columns(crow, col, out_features, panel)
    if bool((columns >= in_features).any()) or bool((col.int() >= panel).any()):
        return f"col reaches beyond the panel of {panel} columns or in_features {in_features}"
    if bool(((rows[1:] == rows[:-1]) & (columns[1:] <= columns[:-1])).any()):
        return "col must increase within a row"
    return None
