"""Calibration: what it keeps to whatever comes, what it learns, and that order and batches do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from feature_store.calibration_state import ItemCalibration, SegmentLevels
from forecaster.contract import QUANTILE_LEVELS
from worker.calibration import (
    LEVELS,
    SEGMENTS,
    Calibrated,
    Raw,
    Subjects,
    added,
    calibrate,
    outcomes_of,
    owed_outcomes,
    ranks_of,
)

_COUNT = len(QUANTILE_LEVELS)
_STEPS = 5


def poisson_quantiles(means: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Quantiles of Poisson demand: float64 (…, quantile); from many draws, so that no library is asked."""
    draws = np.random.default_rng(seed).poisson(means[..., None], (*means.shape, 4_001))
    return np.asarray(np.moveaxis(np.quantile(draws, LEVELS, axis=-1, method="inverted_cdf"), 0, -1), dtype=np.float64)


def raw_of(means: NDArray[np.float64]) -> Raw:
    """What a model says that takes demand to be Poisson of these means (item,), the same at each step."""
    by_step = np.repeat(means[:, None], _STEPS, axis=1)
    return Raw(poisson_quantiles(by_step), by_step, poisson_quantiles(np.cumsum(by_step, axis=1)))


class Shop:
    """Items of one lane, forecast once a day by the same model, whatever they sell."""

    def __init__(self, means: NDArray[np.float64]) -> None:
        self.raw = raw_of(means)
        self.sold: dict[int, NDArray[np.int64]] = {}  # units by day
        self.states: list[ItemCalibration | None] = [None] * len(means)
        self.segments: dict[str, SegmentLevels] = {}

    def forecast(self, day: int, order: Sequence[Sequence[int]] | None = None) -> Calibrated:
        """All items' forecasts on a day, in batches of these items."""
        out = self.raw._replace(**{name: np.empty_like(array) for name, array in self.raw._asdict().items()})
        for batch in order or [range(len(self.states))]:
            items = list(batch)
            made = self._batch(day, items)
            for column, own in zip(out, made, strict=False):
                column[items] = own
        return Calibrated(*out, self.states, self.segments)

    def _batch(self, day: int, items: list[int]) -> Calibrated:
        observed = np.zeros(len(items), dtype=np.int64)
        subjects = Subjects(
            np.full(len(items), day), ["UTC"] * len(items), observed, [self.states[i] for i in items], self.segments
        )
        sold = np.array([self.sold[bucket][items[i]] * 1000 for i, bucket in owed_outcomes(subjects)], dtype=np.int64)
        made = calibrate(Raw(*(array[items] for array in self.raw)), subjects, sold)
        for i, state in zip(items, made.states, strict=True):
            self.states[i] = state or self.states[i]
        for zone, learnt in made.learnt.items():
            self.segments[zone] = added(self.segments.get(zone), learnt)
        return made


def test_before_anything_was_learnt_quantiles_are_the_models_own() -> None:
    shop = Shop(np.array([0.05, 0.7, 4.0, 60.0]))
    made = shop.forecast(0)
    np.testing.assert_array_equal(made.quantiles, shop.raw.quantiles)
    np.testing.assert_array_equal(made.mean, shop.raw.mean)
    np.testing.assert_array_equal(made.cumulative[:, 0], shop.raw.quantiles[:, 0])
    assert made.states[0] is not None
    assert [past.bucket for past in made.states[0].past] == [0, 1]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_levels_follow_demand_that_is_not_what_the_model_takes_it_to_be(factor: float) -> None:
    means = np.tile([0.5, 2.0, 12.0], 60)
    shop, random = Shop(means), np.random.default_rng(1)
    after = range(30, 60)
    below, not_above = np.zeros((2, _COUNT)), np.zeros((2, _COUNT))
    for day in range(after.stop):
        made = shop.forecast(day)
        shop.sold[day] = random.poisson(means * factor)
        if day in after:
            for who, told in enumerate((shop.raw.quantiles[:, 0], made.quantiles[:, 0])):
                busy = means > 1
                below[who] += (shop.sold[day][busy, None] < told[busy]).mean(axis=0) / len(after)
                not_above[who] += (shop.sold[day][busy, None] <= told[busy]).mean(axis=0) / len(after)
    missed = np.maximum(below - LEVELS, LEVELS - not_above).max(axis=1)
    assert missed[0] > 0.15
    assert missed[1] < 0.03


def test_a_calibrated_model_stays_nearly_as_it_is() -> None:
    means = np.tile([0.3, 2.0, 12.0], 60)
    shop, random = Shop(means), np.random.default_rng(2)
    for day in range(40):
        made = shop.forecast(day)
        shop.sold[day] = random.poisson(means)
    levels = np.array(shop.segments["UTC"].levels).reshape(SEGMENTS, _COUNT) / 1e6
    assert np.abs(levels - LEVELS).max() < 0.06
    assert np.abs(made.quantiles - shop.raw.quantiles).mean() < 0.3


def test_order_and_batches_of_a_day_change_nothing() -> None:
    means = np.random.default_rng(3).gamma(0.5, 8, 40)
    one, other = Shop(means), Shop(means)
    random = np.random.default_rng(4)
    for day in range(12):
        made = one.forecast(day)
        order = np.array_split(random.permutation(40), 7)
        again = other.forecast(day, [part.tolist() for part in order])
        for mine, theirs in zip(made[:3], again[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert (one.states, one.segments) == (other.states, other.segments)
        one.sold[day] = other.sold[day] = random.poisson(2 * means)


def test_a_second_forecast_in_a_bucket_learns_nothing_and_reads_the_same_levels() -> None:
    shop = Shop(np.array([3.0, 20.0]))
    for day in range(5):
        made = shop.forecast(day)
        states, segments = list(shop.states), dict(shop.segments)
        again = shop.forecast(day)
        np.testing.assert_array_equal(made.quantiles, again.quantiles)
        assert (shop.states, shop.segments) == (states, segments)
        shop.sold[day] = np.array([9, 9])


def test_what_has_not_been_forecast_for_long_is_not_judged() -> None:
    shop = Shop(np.array([3.0, 20.0]))
    shop.forecast(0)
    subjects = Subjects(np.full(2, 102), ["UTC"] * 2, np.zeros(2, dtype=np.int64), shop.states, shop.segments)
    assert owed_outcomes(subjects) == []
    assert owed_outcomes(subjects._replace(running=np.full(2, 101))) == [(0, 1), (1, 1)]


@given(
    quantiles=arrays(np.float64, (3, 4, _COUNT), elements=st.floats(0, 1e6).map(lambda x: round(x, 3))),
    levels=arrays(np.int64, (SEGMENTS, _COUNT), elements=st.integers(2_000, 998_000)),
    shift=st.integers(-3_000_000, 3_000_000),
)
def test_whatever_was_learnt_quantiles_ascend_and_are_never_below_0(
    quantiles: NDArray[np.float64], levels: NDArray[np.int64], shift: int
) -> None:
    quantiles = np.sort(quantiles, axis=2)
    mean = quantiles.mean(axis=2)
    raw = Raw(quantiles, mean, np.cumsum(quantiles, axis=1))
    nothing = [0] * SEGMENTS, [0] * SEGMENTS * _COUNT
    scales = [500_000 * (place % 3 - 1) for place in range(SEGMENTS)]
    segments = {"UTC": SegmentLevels(5, np.sort(levels, axis=1).ravel().tolist(), scales, *nothing)}
    states = [ItemCalibration(shift, 5, []), ItemCalibration(-shift, 5, []), None]
    subjects = Subjects(np.full(3, 5), ["UTC"] * 3, np.zeros(3, dtype=np.int64), states, segments)
    made = calibrate(raw, subjects, np.empty(0, dtype=np.int64))
    for told in (made.quantiles, made.cumulative):
        assert np.isfinite(told).all()
        assert (np.diff(told, axis=2) >= -1e-6 * (1 + np.abs(told[..., 1:]))).all()
        assert (told >= 0).all()
    assert (np.diff(made.cumulative, axis=1) >= 0).all()
    assert (made.mean >= 0).all()


def test_ranks_of_what_lies_between_on_and_outside_of_quantiles() -> None:
    quantiles = np.arange(1.0, _COUNT + 1)[None]
    np.testing.assert_array_equal(ranks_of(quantiles, np.array([0.0]))[0][1:], 1)  # below all: below each but the first
    np.testing.assert_array_equal(ranks_of(quantiles, np.array([99.0]))[0], 0)
    between = ranks_of(quantiles, np.array([9.5]))[0]
    assert (between[:9] == 0).all()
    assert (between[9:] == 1).all()
    # All mass on 0, and nothing sold: a rank is the level itself, so nothing is learnt.
    never = np.concatenate([np.zeros(_COUNT - 1), [1.0]])[None]
    assert np.abs(ranks_of(never, np.array([0.0]))[0] - LEVELS)[:-1].max() < 0.02


@given(mean=st.floats(0.05, 30), seed=st.integers(0, 1_000))
def test_mean_ranks_of_a_calibrated_forecast_of_counts_are_the_levels(mean: float, seed: int) -> None:
    """Czado, Gneiting and Held (2009): as exactly as 19 quantiles tell a distribution."""
    quantiles = poisson_quantiles(np.array([mean]), seed)
    sold = np.random.default_rng(seed + 1).poisson(mean, 4_000).astype(np.float64)
    ranks = ranks_of(np.repeat(quantiles, len(sold), axis=0), sold)
    assert np.abs(ranks.mean(axis=0) - LEVELS).max() < 0.08


def test_outcomes_tell_where_sales_fell() -> None:
    means = np.tile([2.0, 12.0], 100)
    shop, random = Shop(means), np.random.default_rng(5)
    shop.forecast(0)
    shop.sold[0] = random.poisson(means)
    shop.forecast(1)
    found = outcomes_of(shop.segments["UTC"])
    assert sum(found) == pytest.approx(200)
    assert found.below == pytest.approx(20, abs=12)
    assert found.above == pytest.approx(20, abs=12)


def test_learning_of_a_bucket_is_added_up_and_an_older_ones_dropped() -> None:
    levels, ranks = [1] * SEGMENTS * _COUNT, [7] * SEGMENTS * _COUNT
    scales = [3] * SEGMENTS
    one = SegmentLevels(5, levels, scales, [1] * SEGMENTS, ranks)
    assert added(None, one) == one
    assert added(one, one) == SegmentLevels(5, levels, scales, [2] * SEGMENTS, [14] * SEGMENTS * _COUNT)
    later = SegmentLevels(6, levels, scales, [0] * SEGMENTS, ranks)
    assert added(one, later) == later
    assert added(later, one) == later
