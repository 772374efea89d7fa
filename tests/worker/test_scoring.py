"""Scoring against a plain recomputation, and its measures against the definitions in floats."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.score_state import ItemScores, pack_scores, unpack_scores
from forecaster import accuracy
from forecaster.contract import QUANTILE_LEVELS
from forecaster.score_sums import INTERVALS, MEDIAN
from tests.worker.score_oracle import Order, Rules, recomputed
from worker.scoring import Scoring, ScoringRules, Subjects, Told, day_of, item_sums, measures, score_sums

_HOUR_MS = 3_600_000
_STEPS, _CORRECTION = (1, 2, 5), 3
_RULES = ScoringRules("1h", _STEPS, _CORRECTION)
_FIRST = 480_000


class Walk:
    """Forecasts of some items as a worker would score them, beside messages and orders as topics would hold them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.states: dict[str, ItemScores] = {}
        self.revisions: dict[str, int] = {}
        self.messages: list[Any] = []
        self.orders: list[Order] = []
        self.rows: dict[tuple[str, int, str, str, int], np.ndarray[Any, np.dtype[np.int64]]] = {}

    def sell(self, item_id: str, bucket: int, thousandths: int) -> None:
        self.orders.append(Order(item_id, len(self.orders), bucket * _HOUR_MS + 5, thousandths))

    def forecast(self, running: dict[str, int], version: str) -> None:
        """All items at once, as one batch; a version "baseline" is a degraded forecast."""
        names = sorted(running)
        whole = self.random.integers(0, 2, len(names)) * 999 + 1
        thousandths = self.random.integers(0, 9_000, (len(names), 6, len(QUANTILE_LEVELS))).cumsum(axis=2)
        thousandths[self.random.random(thousandths.shape[:2]) < 0.3] = 0
        thousandths = np.maximum.accumulate(thousandths * (self.random.random(thousandths.shape) < 0.6), axis=2)
        thousandths = thousandths // whole[:, None, None] * whole[:, None, None]
        mean = self.random.integers(0, 90_000, (len(names), 6))
        places = [step - 1 for step in _STEPS]
        labels = [(version, "mugs" if name == "a" else "") for name in names]
        buckets = np.array([running[name] for name in names], dtype=np.int64)
        scoring = Scoring(_RULES, Subjects(buckets, labels, [self.states.get(name) for name in names]))
        sold = [self._sold(names[i], bucket) for i, bucket in scoring.owed]
        told = Told(thousandths[:, places], mean[:, places])
        done = scoring.score(told, np.array(sold, dtype=np.int64))
        for i, name in enumerate(names):
            state = done.states[i]
            if state is not None:
                self.states[name] = unpack_scores(pack_scores(state))
            self.messages.append(self._message(name, running[name], version, thousandths[i], mean[i]))
        for row, by_step in done.rows.items():
            for step, numbers in by_step.items():
                key = "1h", row.day, row.model_version, row.segment, step
                self.rows[key] = self.rows.get(key, np.zeros(9, dtype=np.int64)) + numbers

    def _sold(self, item_id: str, bucket: int) -> int:
        return sum(o.thousandths for o in self.orders if o.item_id == item_id and o.event_time // _HOUR_MS == bucket)

    def _message(self, name: str, running: int, version: str, quantiles: Any, mean: Any) -> Any:
        self.revisions[name] = self.revisions.get(name, 0) + 1
        steps = [
            SimpleNamespace(
                bucket_start=(running + k) * _HOUR_MS,
                bucket_end=(running + k + 1) * _HOUR_MS,
                mean=float(mean[k] / 1000),
                quantiles=[float(q) for q in quantiles[k] / 1000],
            )
            for k in range(6)
        ]
        return SimpleNamespace(
            item_id=name,
            freq="1h",
            revision=self.revisions[name],
            positions={"orders": len(self.orders)},
            steps=steps,
            quantile_levels=list(QUANTILE_LEVELS),
            degraded=version == "baseline",
            model_version=version,
        )

    def expected(self) -> Any:
        rules = Rules({"1h": _STEPS}, {"1h": _CORRECTION}, "orders", category_of=lambda i: "mugs" if i == "a" else "")
        return recomputed([(0, message) for message in self.messages], self.orders, rules)


_MOVES = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 1, 1, 2, 7, 130, -1]), st.integers(0, 7), st.sampled_from(["1", "2", "baseline"])
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(moves=_MOVES, seed=st.integers(0, 2**31))
def test_sums_equal_a_recomputation_whatever_comes_late_and_however_time_goes(moves: Any, seed: int) -> None:
    walk, running = Walk(seed), _FIRST
    for move, sales, version in moves:
        running = max(running + move, _FIRST)
        for _ in range(sales):
            back = int(walk.random.integers(0, 7))  # also of buckets that are no longer corrected
            walk.sell("ab"[int(walk.random.integers(0, 2))], running - back, int(walk.random.integers(1, 20_000)))
        chosen = [name for name in "abc" if walk.random.random() < 0.8]
        walk.forecast(dict.fromkeys(chosen, running), version)
    expected = walk.expected()
    assert {key: tuple(numbers.tolist()) for key, numbers in walk.rows.items()} == expected.rows
    last_day = {name: day_of("1h", state.bucket) for name, state in walk.states.items()}
    found = {
        (name, "1h", s.model_version, s.step, s.first_day): tuple(s.sums)
        for name, state in walk.states.items()
        for s in item_sums(state)
    }
    standing = {k: v for k, v in expected.items.items() if k[4] >= last_day[k[0]] // 28 * 28 - 28}
    assert found == standing


def test_a_forecast_within_the_same_bucket_changes_nothing_unless_an_event_came_late() -> None:
    walk = Walk(1)
    walk.forecast({"a": _FIRST}, "1")
    walk.forecast({"a": _FIRST + 1}, "1")
    before = walk.states["a"], {key: numbers.tolist() for key, numbers in walk.rows.items()}
    walk.sell("a", _FIRST + 1, 2_000)
    walk.forecast({"a": _FIRST + 1}, "1")
    assert (walk.states["a"], {key: numbers.tolist() for key, numbers in walk.rows.items()}) == before
    walk.sell("a", _FIRST, 2_000)
    walk.forecast({"a": _FIRST + 1}, "1")
    assert walk.states["a"].revision == before[0].revision + 1
    assert {key: numbers.tolist()[0] for key, numbers in walk.rows.items()} == {
        key: n[0] for key, n in before[1].items()
    }
    assert sum(numbers[1] for numbers in walk.rows.values()) == 2 * 2_000  # of all, and of its category


def test_measures_are_those_of_the_float_definitions() -> None:
    random = np.random.default_rng(3)
    quantiles = np.sort(random.integers(0, 30_000, (500, len(QUANTILE_LEVELS))), axis=1)
    mean, sold = random.integers(0, 30_000, 500), random.integers(0, 30_000, 500)
    found = measures(score_sums(quantiles, mean, sold).sum(axis=0).tolist())
    y, q, point = sold / 1000, quantiles / 1000, mean / 1000
    assert found.wape == pytest.approx(accuracy.wape(y, q[:, MEDIAN]))
    assert found.wql == pytest.approx(accuracy.wql(y, q, QUANTILE_LEVELS))
    assert found.bias == pytest.approx(accuracy.bias(y, point))
    assert found.rmse == pytest.approx(accuracy.rmse(y, point), rel=1e-6)
    for share, (low, high) in INTERVALS.items():
        assert found.coverage[share] == pytest.approx(accuracy.coverage(y, q[:, low], q[:, high]))


def test_measures_of_nothing_are_not_a_number() -> None:
    nothing = measures([0] * 9)
    assert all(math.isnan(value) for value in (nothing.wape, nothing.rmse, nothing.bias, nothing.wql))


def test_what_is_beyond_all_reason_stays_exact_in_redis() -> None:
    huge = np.array([2**52], dtype=np.int64)
    sums = score_sums(np.zeros((1, len(QUANTILE_LEVELS)), dtype=np.int64), np.zeros(1, dtype=np.int64), huge)
    assert np.abs(sums).max() < 2**53


@pytest.mark.parametrize(("freq", "bucket", "day"), [("1h", 24 * 7 + 23, 7), ("1d", 20_000, 20_000), ("1w", 1, 4)])
def test_a_bucket_lies_in_a_day(freq: str, bucket: int, day: int) -> None:
    assert day_of(freq, bucket) == day
