"""What quantizing did to each layer of a model, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerQuantized:
    """One layer that was asked for. layer: the class it has now; reason: why it was left as it was, else ""; bytes: of
    its own tensors; output_error: ``||y' - y|| / ||y||`` over the calibration data, None without any; figures: what
    the method adds, by name (a method's ``energy before`` and ``energy after``, say); note: what else it has to say."""

    fqn: str
    layer: str
    bytes_before: int
    bytes: int
    output_error: float | None = None
    reason: str = ""
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """`layers` in the model's order; str() is a table."""

    layers: tuple[LayerQuantized, ...]

    @property
    def converted(self) -> tuple[str, ...]:
        """The names of the layers that were exchanged."""
        return tuple(row.fqn for row in self.layers if not row.reason)

    def __getitem__(self, fqn: str) -> LayerQuantized:
        for row in self.layers:
            if row.fqn == fqn:
                return row
        raise KeyError(f"no layer {fqn!r} in the report, which has {', '.join(row.fqn for row in self.layers)}")

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.layers for name in row.figures))
        rows = [("layer", "type", "bytes before", "bytes", "output error", *names, "")]
        rows += [_cells(row, names) for row in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths).rstrip())
        return "\n".join(lines)


def _cells(row: LayerQuantized, names: list[str]) -> tuple[str, ...]:
    error = "-" if row.output_error is None else f"{row.output_error:.3%}"
    figures = (f"{row.figures[name]:.5g}" if name in row.figures else "-" for name in names)
    return row.fqn, row.layer, f"{row.bytes_before:,}", f"{row.bytes:,}", error, *figures, row.reason or row.note
