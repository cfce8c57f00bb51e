"""Dense weights -> panel-CSR (see formats.csr)."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_ext._reference.sparse import order_rows


def pack_panel_csr(
    weight: Tensor, mask: Tensor | None, panel: int, sort: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense [N,K] -> (values, crow, col, order); without `sort`, order is empty."""
    kept = weight != 0 if mask is None else mask
    n, k = weight.shape
    panels = -(-k // panel)
    pad = (0, panels * panel - k)
    kept = torch.nn.functional.pad(kept, pad).view(n, panels, panel).transpose(0, 1).contiguous()
    ends = kept.sum(-1).flatten().cumsum(0)
    if panels * n and int(ends[-1]) >= 2**31:
        raise ValueError(f"at most 2^31 - 1 entries can be stored, got {int(ends[-1])}")
    crow = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    entries = kept.flatten().nonzero().squeeze(1)  # one index an entry: indexing by the mask itself makes three, twice
    cut = torch.nn.functional.pad(weight, pad).view(n, panels, panel).transpose(0, 1)
    packed = cut.flatten()[entries], crow, (entries % panel).to(torch.uint8)
    return sort_rows(*packed, n) if sort else (*packed, crow.new_empty(0))


def sort_rows(values: Tensor, crow: Tensor, col: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In each panel the rows of each block by their number of entries: (values, crow, col, order)."""
    block, counts = order_rows(n), crow.diff()
    segments = torch.arange(counts.shape[0], device=crow.device)
    blocks = segments // max(n, 1) * -(-n // block) + segments % max(n, 1) // block
    place = (blocks * 257 + counts).argsort(stable=True)  # a row has at most 256 entries in a panel
    return *move_rows(values, crow, col, place), (place % max(n, 1) % block).to(torch.int32)


def move_rows(values: Tensor, crow: Tensor, col: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (of each panel) in another order: at i the one that was at place[i]."""
    counts = crow.diff()[place].long()
    ends = counts.cumsum(0)
    # An entry stays as far behind its row's beginning as it was.
    shift = torch.repeat_interleave(crow[:-1][place] - (ends - counts), counts)
    entries = torch.arange(col.shape[0], device=crow.device) + shift
    return values[entries], torch.cat([crow[:1], ends.to(torch.int32)]), col[entries]
