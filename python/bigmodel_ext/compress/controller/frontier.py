"""Which combinations of per-layer forms are worth looking at: the lower convex hull of cost and damage."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

F = TypeVar("F", bound=Hashable)


@dataclass(frozen=True)
class Point(Generic[F]):
    """A form of a layer, what it costs (bytes or seconds) and what it does to the model's output (additive)."""

    form: F
    cost: float
    damage: float


@dataclass(frozen=True)
class Move(Generic[F]):
    """One layer from one form to a cheaper one."""

    layer: str
    form: F
    saved: float
    damage: float  # added

    @property
    def price(self) -> float:
        return self.damage / self.saved


def undominated(points: Sequence[Point[F]]) -> list[Point[F]]:
    """The points that no other beats in both cost and damage, the least damage first, costs falling. Of equal points
    the first stays.

    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("a layer must have at least one form, got none")
    kept: list[Point[F]] = []
    for point in sorted(points, key=lambda p: (p.damage, p.cost)):  # sorted() is stable
        if not kept or point.cost < kept[-1].cost:
            kept.append(point)
    return kept


def hull(points: Sequence[Point[F]]) -> list[Point[F]]:
    """Those of the undominated points that are on the lower convex hull of (cost, damage): each further unit of cost
    saved is dearer than the one before.

    Raises:
        ValueError: there are no points.
    """
    kept: list[Point[F]] = []
    for point in undominated(points):
        while len(kept) >= 2 and _price(kept[-2], kept[-1]) >= _price(kept[-2], point):
            kept.pop()
        kept.append(point)
    return kept


def _price(a: Point[F], b: Point[F]) -> float:
    return (b.damage - a.damage) / (a.cost - b.cost)


def moves(tables: Mapping[str, Sequence[Point[F]]]) -> tuple[dict[str, F], list[Move[F]]]:
    """The combination of least damage, and the moves from it to the cheapest one, the best buys first.

    After any number of moves the combination minimises ``sum of cost + price * sum of damage`` for some price: it is
    the solution of the Lagrange relaxation of "least cost under a limit of damage" (Everett 1963).
    """
    hulls = {layer: hull(points) for layer, points in tables.items()}
    start = {layer: points[0].form for layer, points in hulls.items()}
    steps = [
        Move(layer, b.form, a.cost - b.cost, b.damage - a.damage)
        for layer, points in hulls.items()
        for a, b in pairwise(points)
    ]
    return start, sorted(steps, key=lambda move: move.price)  # stable, and prices rise along each layer's own hull
