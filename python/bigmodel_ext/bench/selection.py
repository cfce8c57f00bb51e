"""What of a suite is run, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["quick", "default", "full"]
MAX_ROUNDS: dict[Size, int] = {"quick": 7, "default": 21, "full": 21}
MIN_ROUNDS: dict[Size, int] = {"quick": 3, "default": 5, "full": 7}
BUDGET_S: dict[Size, float] = {"quick": 0.7, "default": 2.0, "full": 10.0}


@dataclass(frozen=True)
class Selection:
    """`shapes` replaces the suite's own: M, N, K of a linear layer, N and K alone, or rows and features of a dropout.
    `peers` are parts of names; none stands for all that are installed. `rounds` None: until the case's time is up."""

    size: Size = "default"
    peers: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    rounds: int | None = None

    def wants(self, peer: str) -> bool:
        return not self.peers or any(part.lower() in peer.lower() for part in self.peers)

    def linear_shapes(self, ms: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
        """The chosen M, N, K; every M of `ms` for a shape that says N and K only."""
        found = []
        for shape in self.shapes:
            if len(shape) == 2:
                found += [(m, shape[0], shape[1]) for m in ms]
            elif len(shape) == 3:
                found.append((shape[0], shape[1], shape[2]))
        return tuple(found)


def parse_shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """ "128x4096x4096,768x768" -> ((128, 4096, 4096), (768, 768))."""
    shapes = []
    for part in text.split(","):
        numbers = part.strip().split("x")
        if not all(number.isdigit() and int(number) > 0 for number in numbers) or len(numbers) not in (2, 3):
            raise ValueError(
                f"must be MxNxK or NxK (or ROWSxFEATURES) with numbers of at least 1, got {part.strip()!r}"
            )
        shapes.append(tuple(map(int, numbers)))
    return tuple(shapes)
