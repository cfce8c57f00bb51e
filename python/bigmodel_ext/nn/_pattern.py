"""What the two sparse layers share: a pattern (crow, col, order) whose size is known only when it is loaded.

Rows lie sorted, as the kernels like them (see formats.csr); a state dict holds them unsorted and without `order`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigmodel_ext.formats import csr
from bigmodel_ext.nn._linear import CompressedLinear

_STORED = ("values", "crow", "col")


class PatternLinear(CompressedLinear):
    """Holds crow, col and order over `columns` columns; `values` has one row for each entry of col."""

    panel: int
    values: Tensor
    crow: Tensor
    col: Tensor
    order: Tensor

    def _register_pattern(self, panel: int, device: torch.device | str | None) -> None:
        self.panel = panel
        panels = -(-self.columns // panel)
        self.register_buffer("crow", torch.zeros(panels * self.out_features + 1, dtype=torch.int32, device=device))
        self.register_buffer("col", torch.empty(0, dtype=torch.uint8, device=device))
        self.register_buffer("order", csr.rows_in_order(self.out_features, panels, device), persistent=False)

    def _sorted(self, values: Tensor, crow: Tensor, col: Tensor) -> Tensor:
        """Take over a pattern as csr.pack makes it; returns the values in the order in which the layer holds them."""
        values, self.crow, self.col, self.order = csr.sort_rows(values, crow, col, self.out_features)
        return values

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A layer that waits for its pattern to be loaded has none to unsort.
        if not self.crow.is_meta and int(self.crow[-1]) == self.col.shape[0]:
            with torch.set_grad_enabled(keep_vars):
                stored = csr.unsort_rows(self.values, self.crow, self.col, self.out_features, self.order)
            destination.update(zip((prefix + name for name in _STORED), stored, strict=True))

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

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = [prefix + name for name in _STORED]
        present = [key for key in keys if key in state_dict]
        problem = self._prepare(*(state_dict[key] for key in keys)) if len(present) == len(keys) else ""
        if problem:
            error_msgs.append(f"{prefix}{problem}")
        if problem is not None:  # the three belong together: load none of them
            state_dict = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if problem is None:
            self._pattern_loaded()
        else:
            missing_keys[:] = [key for key in missing_keys if key not in present]
        self._keep_float32()

    def _pattern_loaded(self) -> None:
        """Derive what depends on values and pattern."""
        if not self.crow.is_meta:
            self.values.data = self._sorted(self.values.detach(), self.crow, self.col)

    def _prepare(self, values: Tensor, crow: Tensor, col: Tensor) -> str | None:
        """Check what is to be loaded and make room for it."""
        panel = self.panel
        if crow.shape != self.crow.shape:
            panel = csr.panel_of(crow, self.out_features, self.columns) or panel
        problem = csr.invalid(crow, col, self.out_features, self.columns, panel) or self._invalid_values(values)
        if problem is None and values.shape[:1] != col.shape:
            problem = f"values must have {col.shape[0]} entries, one for each of col, got {values.shape[0]}"
        if problem is None and panel != self.panel:
            self.panel, self.crow = panel, self.crow.new_empty(crow.shape)
        if problem is None and col.shape != self.col.shape:
            self.resize(col.shape[0])
        return problem

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored={self.col.shape[0]}"
