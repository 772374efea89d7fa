"""The sums behind alerts, against simulation, scipy and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from feature_store.alert_state import AlertLevels
from worker.alert_evidence import (
    BELOW,
    CHANNEL_OF,
    DETECTORS,
    KIND_OF,
    LINES,
    RATINGS,
    spread_of,
    spread_of_quantiles,
    strength_of,
    tail_probability,
    tilts_of,
)
from worker.alert_levels import Budget, added, level_of, levels_in


@pytest.mark.parametrize("spread", [1.1, 1.8, 6.0])
def test_evidence_has_mean_one_where_the_count_follows_its_forecast_and_grows_where_it_does_not(spread: float) -> None:
    expected, counts = 6.0, np.arange(4_000)
    tilts = tilts_of(np.full((1, 4), spread), np.array([0.2]))
    for number, detector in enumerate(DETECTORS):
        if detector.channel == RATINGS:
            continue
        gain, cost = tilts.gain[0, number], tilts.cost[0, number]
        own = 1.1 + (spread - 1.1) * detector.window
        chances = stats.nbinom(expected / (own - 1), 1 / own).logpmf(counts)
        assert np.exp(chances + gain * counts - cost * expected).sum() == pytest.approx(1.0, abs=1e-6)
        assert gain * detector.ratio * expected - cost * expected > 0


def test_ratings_have_mean_at_most_one_whatever_their_distribution() -> None:
    rng, past = np.random.default_rng(3), 0.25
    tilts = tilts_of(np.full((1, 4), 2.0), np.array([past]))
    for number in np.flatnonzero(CHANNEL_OF == RATINGS).tolist():
        for shares in ([0.75, 0, 0, 0, 0.25], [0.3, 0.5, 0.1, 0.1, 0.0], [0.4, 0.3, 0.2, 0.1, 0]):
            unhappy = rng.choice(np.arange(5) / 4, p=shares, size=(100_000, 8))
            shift = past - unhappy.mean()
            total = (unhappy + shift).sum(axis=1)
            evidence = np.exp(tilts.gain[0, number] * total - tilts.cost[0, number] * 8)
            assert evidence.mean() <= 1.05


@pytest.mark.parametrize(
    ("count", "expected", "spread"), [(0, 3.0, 1.5), (7, 3.0, 1.5), (40, 9.5, 2.0), (2, 30.0, 4.0)]
)
def test_tail_probabilities_are_those_of_scipy(count: int, expected: float, spread: float) -> None:
    law = stats.nbinom(expected / (spread - 1), 1 / spread)
    assert tail_probability(count, expected, spread, above=True) == pytest.approx(law.sf(count - 1), rel=1e-6)
    assert tail_probability(count, expected, spread, above=False) == pytest.approx(law.cdf(count), rel=1e-6)


def test_the_spread_of_an_exponential_law_is_found_from_its_quantiles() -> None:
    levels = np.concatenate([np.linspace(0.005, 0.975, 400), [0.995]])
    quantiles = -10 * np.log1p(-levels)  # mean 10, variance 100
    assert spread_of_quantiles(quantiles[None], levels, np.array([10.0]))[0] == pytest.approx(10.0, rel=0.05)


def test_days_whose_rate_is_off_by_a_quarter_have_the_spread_that_is_supposed() -> None:
    rng, a_day = np.random.default_rng(5), 40.0
    days = rng.poisson(a_day * rng.gamma(16.0, 1 / 16, 200_000))
    assert spread_of(np.array([a_day]))[0] == pytest.approx(days.var() / days.mean(), rel=0.05)


def test_demand_below_must_show_more_and_one_strong_detector_of_a_kind_is_enough() -> None:
    evidence = np.zeros((len(DETECTORS), len(DETECTORS)))
    np.fill_diagonal(evidence, 20.0)
    own = strength_of(evidence)[np.arange(len(DETECTORS)), KIND_OF]
    assert (own > 15).all()
    assert own[KIND_OF == BELOW].max() < own[KIND_OF != BELOW].min()


def test_no_more_false_alerts_are_granted_than_the_share_of_those_opened() -> None:
    rng = np.random.default_rng(1)
    for budget in (Budget(), Budget(share=0.1, fade=0.98, spend=0.3)):
        opened = rng.poisson(rng.choice([0.0, 0.0, 0.3, 4.0], 300))
        stored: AlertLevels | None = None
        granted = counted = 0.0
        for day, count in enumerate(opened.tolist()):
            levels = levels_in(stored, day, budget)
            granted = budget.fade * granted + level_of(levels, budget) * max(levels.judged, 1)
            counted = budget.fade * counted + count
            assert granted <= budget.share * max(counted, 1.0) + 1e-9
            for part in ([count, 20_000], [0, 30_000]):
                stored = added(stored, AlertLevels(day, levels.wealth, levels.judged, part))
    assert stored is not None
    assert stored.sums[1] == 50_000


def test_detectors_of_orders_find_what_they_are_named_for() -> None:
    tilts = tilts_of(np.full((1, 4), 1.5), np.array([0.2]))
    for number, detector in enumerate(DETECTORS):
        if detector.channel == LINES and detector.ratio > 1:
            own = 1.1 + 0.4 * detector.window
            theta = math.log(detector.ratio * own / (1 + detector.ratio * (own - 1)))
            assert tilts.gain[0, number] == pytest.approx(theta)
