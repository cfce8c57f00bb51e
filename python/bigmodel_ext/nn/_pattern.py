"""What the sparse layers share: a pattern (crow, col) whose size is known only when it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.formats import csr
from bigmodel_ext.functional._sparse import forget_derived, forget_transposed
from bigmodel_ext.nn._compressed import Compressed
from bigmodel_ext.nn._linear import Activated, CompressedLinear


class Pattern(Compressed):
    """Holds crow and col over `outputs` rows and `columns` columns; `values` has one row for each entry of col."""

    stored = ("values", "crow", "col")
    panel: int
    values: Tensor
    crow: Tensor
    col: Tensor

    def _register_pattern(self, panel: int, device: torch.device | str | None) -> None:
        csr.require_panel(panel)
        self.panel = panel
        entries = -(-self.columns // panel) * self.outputs + 1
        self.register_buffer("crow", torch.zeros(entries, dtype=torch.int32, device=device))
        self.register_buffer("col", torch.empty(0, dtype=torch.uint8, device=device))

    def _pack(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        """Take over the pattern of weight [N,K], from mask or where it is not 0; returns the values to be stored."""
        values, self.crow, self.col = csr.pack(weight, mask, self.panel)
        return values

    @property
    def outputs(self) -> int:
        """How many rows the pattern has."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """How many columns the pattern has."""
        raise NotImplementedError

    def resize(self, stored: int) -> None:
        """Make room for another number of stored entries; what they hold is undefined."""
        raise NotImplementedError

    def _invalid_values(self, values: Tensor) -> str | None:
        """What is wrong with loaded values, or None."""
        raise NotImplementedError

    def _prepare(self, *stored: Tensor) -> str | None:
        values, crow, col = stored
        panel = self.panel
        if crow.shape != self.crow.shape:
            panel = csr.panel_of(crow, self.outputs, self.columns) or panel
        problem = csr.invalid(crow, col, self.outputs, self.columns, panel) or self._invalid_values(values)
        if problem is None and values.shape[:1] != col.shape:
            problem = f"values must have {col.shape[0]} entries, one for each of col, got {values.shape[0]}"
        if problem is None and panel != self.panel:
            self.panel, self.crow = panel, self.crow.new_empty(crow.shape)
        if problem is None and col.shape != self.col.shape:
            self.resize(col.shape[0])
        return problem

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored={self.col.shape[0]}"


class PatternLinear(Pattern, CompressedLinear):
    @property
    def outputs(self) -> int:
        """N."""
        return self.out_features


class PanelLinear(PatternLinear, Activated):
    """Rows lie sorted, as the kernels like them (`order`, see formats.csr); a state dict holds them unsorted, without
    `order`. In training the pattern's transpose is kept beside it, from the first backward pass until `eval()`; on a
    GPU the pattern in other forms, from the first pass that needs them (backends/sparse_patterns.py)."""

    order: Tensor

    def train(self, mode: bool = True) -> Any:
        if not mode:
            forget_transposed(self.col)
        return super().train(mode)

    def _prepare(self, *stored: Tensor) -> str | None:
        forget_derived(self.col)  # torch can't swap a tensor that is weakly referenced
        return super()._prepare(*stored)

    def _register_pattern(self, panel: int, device: torch.device | str | None) -> None:
        super()._register_pattern(panel, device)
        panels = -(-self.columns // panel)
        self.register_buffer("order", csr.rows_in_order(self.out_features, panels, device), persistent=False)

    def _pack(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        values, self.crow, self.col, self.order = csr.pack_sorted(weight, mask, self.panel)
        return values

    def _loaded(self) -> None:
        if not self.crow.is_meta:
            stored = (self.values.detach(), self.crow, self.col)
            self.values.data, self.crow, self.col, self.order = csr.sort_rows(*stored, self.out_features)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A layer that waits for its pattern to be loaded has none to unsort.
        if not self.crow.is_meta and int(self.crow[-1]) == self.col.shape[0]:
            with torch.set_grad_enabled(keep_vars):
                stored = csr.unsort_rows(self.values, self.crow, self.col, self.out_features, self.order)
            destination.update(zip((prefix + name for name in self.stored), stored, strict=True))


class SparseValues(Pattern):
    """Stored weights that are trained: a Parameter of one number for each entry of the pattern."""

    def _register_values(self, panel: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self.values = nn.Parameter(torch.empty(0, device=device, dtype=dtype))
        self._register_pattern(panel, device)

    def _store(self, weight: Tensor, mask: Tensor | None, requires_grad: bool) -> None:
        """Fill with weight [N,K] where mask (default: weight != 0) is True."""
        self.values = nn.Parameter(self._pack(weight, mask), requires_grad=requires_grad)

    @property
    def nnz(self) -> int:
        """How many weights are stored."""
        return self.col.shape[0]

    def resize(self, stored: int) -> None:
        """Make room for another number of stored weights (the same Parameter); what they hold is undefined."""
        self.values.data = self.values.data.new_empty(stored)
        self.values.grad = None
        self.col = self.col.new_empty(stored)

    def _invalid_values(self, values: Tensor) -> str | None:
        fits = values.dim() == 1 and values.is_floating_point()
        return None if fits else f"values must be floating point [nnz], got {values.dtype} {list(values.shape)}"


def panel_of_weight(weight: Tensor, mask: Tensor | None) -> int:
    """The panel for what of weight would be stored."""
    stored = weight.count_nonzero() if mask is None else mask.count_nonzero()
    return csr.panel_for(int(stored) / max(weight.numel(), 1))
