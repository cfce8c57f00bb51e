"""A line of the quality table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Ours and a peer's figure for one case; `wanted` says what holds when it does: ours OP factor * peer."""

    case: str  # model, data, setting
    metric: str  # with its unit, as "loss increase, nats"
    ours: float
    peer: str
    theirs: float
    lower_is_better: bool = True
    factor: float = 1.0  # ours must be <= factor * theirs (or >= where higher is better)

    @property
    def holds(self) -> bool:
        limit = self.factor * self.theirs
        return self.ours <= limit if self.lower_is_better else self.ours >= limit
