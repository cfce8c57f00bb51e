"""The cheapest combination of per-layer forms that keeps the accuracy budget, found by trying few of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from bigmodel_ext.compress.controller.frontier import F, Move, Point, hull, moves, undominated


@dataclass(frozen=True)
class Trial(Generic[F]):
    """A combination that was tried. `kept`: it keeps the budget and was the cheapest so far; others are rolled back."""

    forms: Mapping[str, F]
    cost: float
    damage: float
    score: float
    within: bool
    kept: bool


@dataclass(frozen=True)
class Found(Generic[F]):
    """The best combination (None: not even the least damaging one keeps the budget), and all that were tried."""

    best: Trial[F] | None
    trials: tuple[Trial[F], ...]


class Search(Generic[F]):
    """Bisection along the frontier of :func:`frontier.moves`, then single moves beyond it.

    The frontier orders combinations by predicted damage; only the model itself tells whether one keeps the budget. So
    the cheapest one that does is found by bisection, in about log2(moves) trials. Then each further move is tried
    alone, best buy first: predictions per layer are coarse, and some layers can go further than their neighbours. A try
    that breaks the budget is undone, and the layer tries to go half as far.

    Args:
        tables: each layer's forms with cost and damage.
        score: the score of a combination, as measured on the model.
        within: whether a score keeps the budget.
        target: a cost to reach: the least damaging combination that reaches it is tried first and taken if it keeps the
            budget. None: as cheap as can be.
        trials: at most this many combinations are tried.
        fixed: cost that no form changes.
    """

    def __init__(
        self,
        tables: Mapping[str, Sequence[Point[F]]],
        score: Callable[[Mapping[str, F]], float],
        within: Callable[[float], bool],
        *,
        target: float | None = None,
        trials: int = 16,
        fixed: float = 0.0,
    ) -> None:
        self._points = {layer: {point.form: point for point in points} for layer, points in tables.items()}
        self.start, self.moves = moves(tables)
        self._frontier = {layer: [point.form for point in hull(points)] for layer, points in tables.items()}
        self._ranked = {layer: [point.form for point in undominated(points)] for layer, points in tables.items()}
        self._score, self._within, self.target, self.trials, self.fixed = score, within, target, trials, fixed
        self._trials: list[Trial[F]] = []
        self._best: Trial[F] | None = None

    def cost(self, forms: Mapping[str, F]) -> float:
        return self.fixed + sum(self._points[layer][form].cost for layer, form in forms.items())

    def damage(self, forms: Mapping[str, F]) -> float:
        return sum(self._points[layer][form].damage for layer, form in forms.items())

    def combination(self, count: int) -> dict[str, F]:
        """The least damaging combination after the first `count` moves."""
        forms = dict(self.start)
        for move in self.moves[:count]:
            forms[move.layer] = move.form
        return forms

    def _last(self) -> int:
        """The number of moves that reach the target, or all."""
        if self.target is None:
            return len(self.moves)
        counts = range(len(self.moves) + 1)
        return next((n for n in counts if self.cost(self.combination(n)) <= self.target), len(self.moves))

    def _try(self, forms: Mapping[str, F]) -> bool:
        tried = next((trial for trial in self._trials if trial.forms == forms), None)
        if tried is not None:
            return tried.within
        score = self._score(forms)
        within = self._within(score)
        cost = self.cost(forms)
        kept = within and (self._best is None or cost < self._best.cost)
        trial = Trial(dict(forms), cost, self.damage(forms), score, within, kept)
        self._trials.append(trial)
        if kept:
            self._best = trial
        return within

    def run(self) -> Found[F]:
        low, high = -1, self._last()
        if self.target is not None and self._try(self.combination(high)):
            return Found(self._best, tuple(self._trials))  # the least damage that reaches the target
        high -= self.target is not None
        while low < high and self._left():  # after `low` moves the budget is kept, after `high + 1` it is not
            middle = (low + high + 1) // 2
            if self._try(self.combination(middle)):
                low = middle
            else:
                high = middle - 1
        if low >= 0:
            self._refine(low)
        return Found(self._best, tuple(self._trials))

    def _left(self) -> bool:
        return len(self._trials) < self.trials

    def _refine(self, count: int) -> None:
        forms = self.combination(count)
        broken = {layer: len(ranked) for layer, ranked in self._ranked.items()}  # the first form known to break it
        while self._left() and (self.target is None or self.cost(forms) > self.target):
            move = self._next(forms, broken)
            if move is None:
                return
            changed = {**forms, move.layer: move.form}
            if self._try(changed):
                forms = changed
            else:
                broken[move.layer] = self._ranked[move.layer].index(move.form)

    def _next(self, forms: Mapping[str, F], broken: Mapping[str, int]) -> Move[F] | None:
        """The best buy of all layers: each one's next form of the frontier, or, if that was too far, halfway to it."""
        found = []
        for layer, ranked in self._ranked.items():
            now, end = ranked.index(forms[layer]), broken[layer]
            if now + 1 >= end:
                continue
            further = (ranked.index(form) for form in self._frontier[layer])
            new = next((i for i in further if i > now), None) if end == len(ranked) else (now + end) // 2
            if new is not None:
                a, b = self._points[layer][forms[layer]], self._points[layer][ranked[new]]
                found.append(Move(layer, b.form, a.cost - b.cost, b.damage - a.damage))
        return min(found, key=lambda move: move.price, default=None)
