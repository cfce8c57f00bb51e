"""What the steps that search for a combination share: each trial is an attempt, and the cheapest that keeps the budget
becomes the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from bigmodel_ext.compress.controller.frontier import F, Point
from bigmodel_ext.compress.controller.search import Search
from bigmodel_ext.compress.pipeline.context import Attempt, Context, Stage, Tried


def search_stage(
    context: Context,
    name: str,
    before: Stage,
    points: Mapping[str, Sequence[Point[F]]],
    *,
    make: Callable[[Mapping[str, F]], nn.Module],
    told: Callable[[Mapping[str, F]], str],
    trials: int,
    fixed: float,
    unchanged: str,
    details: Callable[[Search[F], Mapping[str, F]], dict[str, Any]],
) -> Stage:
    """Search among combinations of `points`; see `Search` for trials and fixed.

    Args:
        make: a combination's model.
        told: what people read of a combination.
        unchanged: what they read if none keeps the budget, and `before` stays.
        details: what the step adds to the report, of the search and the combination that was taken.
    """
    best: list[tuple[float, Tried]] = []

    def score(chosen: Mapping[str, F]) -> float:
        key = "; ".join(f"{part} {form}" for part, form in chosen.items())
        tried = context.attempt(told(chosen), partial(make, chosen), before.fresh, key)
        cost = search.cost(chosen)
        if context.within(tried.score) and (not best or cost < best[0][0]):
            best[:] = [(cost, tried)]  # only the best one's model is held
        return tried.score

    search = Search(points, score, context.within, target=context.target, trials=trials, fixed=fixed)
    found = search.run()
    attempts = tuple(Attempt(told(trial.forms), trial.score, trial.kept) for trial in found.trials)
    report = {
        "cost": context.cost,
        "target": context.target,
        "trials": [
            {"cost": t.cost, "damage": t.damage, "score": t.score, "within": t.within, "kept": t.kept}
            for t in found.trials
        ],
        **details(search, search.start if found.best is None else found.best.forms),
    }
    if found.best is None:
        context.progress.note(f"  {unchanged}")
        return Stage(name, before.model, before.fresh, unchanged, before.score, attempts, report)
    tried = best[0][1]
    return Stage(name, tried.model(), before.fresh, told(found.best.forms), tried.score, attempts, report)
