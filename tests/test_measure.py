"""How gains are measured: on a clock of the test's own."""

import math
import time

import pytest
from bigmodel_ext import _choose, _measure


class Clock:
    """Time that passes only in calls, by what each is said to take next."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(_measure, "own_clock", lambda: lambda: self.now)

    def call(self, name, *seconds):
        def run():
            self.calls.append(name)
            self.now += seconds[(self.calls.count(name) - 1) % len(seconds)]

        return run


class TestMeasurement:
    @pytest.mark.parametrize("dense", [3e-6, 3e-4, 3e-2, 3.0])
    def test_the_gain_is_the_ratio_of_times(self, monkeypatch, dense):
        clock = Clock(monkeypatch)
        gains = _measure.gains(clock.call("d", dense), clock.call("a", dense / 2), clock.call("b", dense * 4))
        assert gains == [pytest.approx(2.0), pytest.approx(0.25)]
        assert clock.now <= max(2 * _measure.MOST_S, 3 * dense * 5.5)

    def test_the_median_outlives_interruptions(self, monkeypatch):
        clock = Clock(monkeypatch)
        (gain,) = _measure.gains(clock.call("d", 1e-3), clock.call("a", 5e-4, 5e-4, 5e-4, 5e-4, 2e-2))
        assert gain == pytest.approx(2.0)

    def test_who_begins_alternates(self, monkeypatch):
        clock = Clock(monkeypatch)
        _measure.gains(clock.call("d", 1e-3), clock.call("a", 1e-3))
        assert "".join(clock.calls).startswith("dada" + "daad" * 2)

    def test_what_is_unclear_is_measured_longer_but_not_for_ever(self, monkeypatch):
        clock = Clock(monkeypatch)
        _measure.gains(clock.call("d", 1e-4), clock.call("a", 5e-5))
        soon = clock.now
        (gain,) = _measure.gains(clock.call("d2", 1e-4), clock.call("a2", 9.8e-5, 1.05e-4))
        assert 2 * soon < clock.now - soon < 2 * _measure.MOST_S
        assert 0.9 < gain < 1.1

    def test_whose_time(self, threads):
        assert _measure.own_clock() is (time.thread_time if threads == 1 else time.perf_counter)

    def test_clear(self):
        assert _measure.clear([2.0])
        assert _measure.clear([0.5])
        assert not _measure.clear([1.1])
        assert not _measure.clear([0.7, 1.5])
        assert not _measure.clear([math.nan])
        assert _measure.clear([1.1] * 30 + [0.5] * 5)
        assert not _measure.clear([1.1] * 20 + [0.5] * 15)
        assert _measure.clear([0.9] * 30 + [1.5] * 5)

    def test_the_fastest_and_those_as_fast(self):
        assert _choose.as_fast_as_best([1.0, 2.0, 1.9, 1.95]) == [1, 3]
        assert _choose.told({1: 0.5, 128: 2.0}) == "0.50x at 1 row, 2.00x at 128 rows"
