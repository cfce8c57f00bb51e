"""The controller's parts that need no model: budget, frontier, search and journal."""

import itertools
import json
import math
import random

import pytest
from bigmodel_ext.compress.controller import Budget, Journal, Search
from bigmodel_ext.compress.controller.frontier import Point, hull, moves, undominated
from torch import nn


def _random_tables(seed, layers=4, forms=4):
    draw = random.Random(seed)
    return {
        f"l{i}": [Point("dense", 10.0 + i, 0.0)]
        + [Point(f"f{j}", draw.uniform(1, 10), draw.uniform(0.01, 1)) for j in range(forms)]
        for i in range(layers)
    }


def test_hull_keeps_what_no_mixture_beats():
    points = [Point("a", 10, 0), Point("b", 9, 5), Point("c", 6, 1), Point("d", 6, 1.5), Point("e", 2, 9)]
    assert [p.form for p in hull(points)] == ["a", "c", "e"]
    assert [p.form for p in hull([Point("x", 3, 0), Point("y", 3, 0)])] == ["x"]
    with pytest.raises(ValueError, match="at least one form"):
        hull([])


def test_undominated_keeps_what_no_other_point_beats():
    points = [Point("a", 10, 0), Point("b", 9, 5), Point("c", 6, 1), Point("d", 6, 1.5), Point("e", 2, 9)]
    points += [Point("f", 5, 6), Point("g", 2, 9)]
    assert [p.form for p in undominated(points)] == ["a", "c", "f", "e"]


@pytest.mark.parametrize("seed", range(20))
def test_every_combination_of_the_frontier_is_optimal_for_its_cost(seed):
    """Against all combinations: none has at most the same damage at a lower cost."""
    tables = _random_tables(seed)
    start, steps = moves(tables)
    every = [
        (sum(p.cost for p in chosen), sum(p.damage for p in chosen)) for chosen in itertools.product(*tables.values())
    ]
    by = {layer: {p.form: p for p in points} for layer, points in tables.items()}
    forms, prices = dict(start), [move.price for move in steps]
    assert prices == sorted(prices)
    for move in [None, *steps]:
        if move:
            forms[move.layer] = move.form
        cost = sum(by[layer][form].cost for layer, form in forms.items())
        damage = sum(by[layer][form].damage for layer, form in forms.items())
        assert not [1 for c, d in every if d <= damage - 1e-12 and c <= cost - 1e-12]
    assert cost == pytest.approx(min(c for c, _ in every))


def _brute_force(tables, most):
    best = math.inf
    for chosen in itertools.product(*tables.values()):
        if sum(p.damage for p in chosen) <= most:
            best = min(best, sum(p.cost for p in chosen))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_search_comes_near_the_best_combination(seed):
    """With a score that is minus the damage: the best of all is at most a few percent cheaper, the budget is kept, and
    the uniform choices are beaten."""
    tables = _random_tables(seed, layers=5)
    budget = 1.0
    damage = {layer: {p.form: p.damage for p in points} for layer, points in tables.items()}
    search = Search(
        tables, lambda forms: -sum(damage[layer][f] for layer, f in forms.items()), lambda s: s >= -budget, trials=30
    )
    found = search.run()
    best = _brute_force(tables, budget)
    assert found.best.damage <= budget
    assert found.best.cost <= 1.25 * best
    for form in ("dense", "f0", "f1", "f2", "f3"):
        chosen = {layer: form for layer in tables}
        if search.damage(chosen) <= budget:
            assert found.best.cost <= search.cost(chosen)
    assert len(found.trials) <= 30


def test_what_breaks_the_budget_is_rolled_back():
    tables = {name: [Point("dense", 10, 0), Point("low", 2, 1)] for name in "abc"}
    tables["b"] = [Point("dense", 10, 0), Point("low", 1, 1)]
    asked = []

    def score(forms):
        asked.append(dict(forms))
        return 0.5 if forms["b"] == "low" else 1.0

    found = Search(tables, score, lambda s: s >= 0.9).run()
    assert found.best.forms == {"a": "low", "b": "dense", "c": "low"}
    assert [t.within for t in found.trials].count(False) >= 1
    assert all(t.within for t in found.trials if t.kept)


def test_a_layer_that_can_not_go_all_the_way_goes_half():
    """The frontier goes from dense to low at once; what lies between is better than staying."""
    between = [Point(f"f{i}", 10 - i, 0.5 + 0.05 * i) for i in range(1, 8)]
    tables = {name: [Point("dense", 10, 0), *between, Point("low", 1, 0.95)] for name in "ab"}
    assert [p.form for p in hull(tables["a"])] == ["dense", "low"]
    allowed = {"a": ("dense", "f1", "f2", "f3", "f4", "f5"), "b": ("dense",)}
    asked = []

    def score(forms):
        asked.append(dict(forms))
        return float(all(forms[layer] in ok for layer, ok in allowed.items()))

    found = Search(tables, score, lambda s: s == 1.0).run()
    assert found.best.forms == {"a": "f5", "b": "dense"}
    assert len(asked) <= 2 + 2 * 4, "bisection, not one after the other"


def test_target_ends_the_search_and_no_way_is_told():
    tables = {name: [Point("dense", 10, 0), Point("low", 2, 1)] for name in "abcd"}
    found = Search(tables, lambda forms: 1.0, lambda s: True, target=26.0).run()
    assert found.best.cost == 24
    assert len(found.trials) == 1
    none = Search(tables, lambda forms: 0.0, lambda s: False).run()
    assert none.best is None
    assert not any(t.kept for t in none.trials)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"max_drop": -1.0}, ValueError, "max_drop must be finite and at least 0, got -1.0"),
     ({"max_drop": math.nan}, ValueError, "got nan"),
     ({"drop_type": "both"}, ValueError, "drop_type must be one of absolute, relative, got 'both'"),
     ({"validation_fn": 3}, TypeError, "validation_fn must be callable, got 3")],
)  # fmt: skip
def test_budget_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        Budget(**{"validation_fn": lambda m: 1.0, "max_drop": 0.1, **changes})


def test_budget_counts_absolute_and_relative_drops():
    absolute, relative = Budget(lambda m: 0.0, 0.1), Budget(lambda m: 0.0, 0.1, "relative")
    assert absolute.floor(0.9) == pytest.approx(0.8)
    assert relative.floor(0.5) == pytest.approx(0.45)
    assert relative.floor(-2.0) == pytest.approx(-2.2)  # minus a loss
    assert absolute.within(0.8, 0.9)
    assert not absolute.within(0.799, 0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf, "a", None])
def test_a_bad_score_is_refused_and_the_mode_restored(value):
    model = nn.Linear(2, 2)
    seen = []

    def validation(m):
        seen.append(m.training)
        return value

    with pytest.raises((TypeError, ValueError), match="validation_fn must return a"):
        Budget(validation, 0.1).score(model)
    assert seen == [False]
    assert model.training


def _use(path, run=None, until=None):
    """Ten steps, recorded; killed before step `until`."""
    journal = Journal(path, run or {"seed": 1})
    values = []
    for i in range(10):
        if i == until:
            raise KeyboardInterrupt
        values.append(journal.recall(f"step {i}", lambda i=i: [i, random.random()]))
    return values, journal.recalled


@pytest.mark.parametrize("until", [0, 1, 5, 9])
def test_a_journal_goes_on_where_it_was(tmp_path, until):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _use(path, until=until)
    with open(path, "ab") as file:
        file.write(b'{"name": "step 99", "val')  # a kill in the middle of a line
    first, recalled = _use(path)
    assert recalled == until
    assert _use(path) == (first, 10)
    assert len(path.read_text().splitlines()) == 11


def test_a_journal_of_another_run_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    _use(path)
    with pytest.raises(ValueError, match="belongs to another run: seed was 1, is 2"):
        _use(path, {"seed": 2})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"journal.jsonl is damaged"):
        _use(path)
    path.write_text(json.dumps([1]) + "\n")
    with pytest.raises(ValueError, match="does not say what run"):
        _use(path)
