"""Looks at items, as arrays: their states, and what was counted and expected how many buckets ago. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import AlertLevels, ItemAlerts
from feature_store.features import FEATURE_INDEX
from worker.alert_evidence import (
    BELOW,
    CARTS,
    CHANNEL_OF,
    CHANNELS,
    DETECTORS,
    KIND_OF,
    LEAST_SPREAD,
    LINES,
    RATINGS,
    UNITS,
    VIEWS,
    Tilts,
    tilts_of,
)
from worker.alert_levels import Budget

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LONGEST = 48  # buckets that a window, and the way back to the last look, may be long
THOUSAND = 1_000
# Of ItemAlerts.traits: units a line, carts and views a line, the spreads of the four channels of counts, and
# the share of units a day that a drop is measured against.
UNITS_A_LINE, CARTS_A_LINE, VIEWS_A_LINE, SPREADS, USUAL_SHARE = 0, 1, 2, slice(3, 7), 7
TRAITS = 8
COLUMNS = [FEATURE_INDEX[name] for name in ("order_lines", "units", "add_to_carts", "views")]
REVIEWS, STARS = FEATURE_INDEX["review_count"], FEATURE_INDEX["rating_sum"]
_FEWEST_RATINGS = 10
_PRIOR_RATINGS, _PRIOR_DISSATISFACTION, _RATING_MARGIN = 4.0, 0.2, 0.03


class AlertRules(NamedTuple):
    """per_day: buckets a day. closing: how far log evidence falls before an episode closes. cooldown: buckets after
    an episode in which nothing is opened. update_ms: an open episode is told of again after this time."""

    per_day: int
    budget: Budget = Budget()
    closing: float = 4.6
    cooldown: int = 48
    update_ms: int = 6 * 3_600_000


class Looks(NamedTuple):
    """Items as they were read at one cutoff, with the forecasts that were made then.

    item_ids, forecast_ids: of each. running: int64 (item,). elapsed: float64 (item,), part of the running bucket.
    closed: float32 (item, bucket, feature), the buckets before the running one, oldest first; NaN = not observed.
    now: float32 (item, feature), sums so far in the running bucket.
    mean: float64 (item, step), units, the running bucket first.
    total: float64 (item, quantile), total_mean: float64 (item,), of units from the cutoff on, over a day and a bucket.
    states: of each, None = it has none yet. levels: of the lane.
    """

    item_ids: Sequence[str]
    forecast_ids: Sequence[str]
    cutoff_ms: int
    running: Integers
    elapsed: Floats
    closed: NDArray[np.float32]
    now: NDArray[np.float32]
    mean: Floats
    total: Floats
    total_mean: Floats
    states: Sequence[ItemAlerts | None]
    levels: AlertLevels | None


class Evidence(NamedTuple):
    """evidence: float64 (item, detector). ages: int64 (item, detector)."""

    evidence: Floats
    ages: Integers


class Table:
    """States as arrays, with counts and expectations by how many buckets ago."""

    def __init__(self, looks: Looks, rules: AlertRules) -> None:
        self.looks, self.rules = looks, rules
        count = len(looks.states)
        gap = np.array([b - s.bucket if s else 0 for b, s in zip(looks.running.tolist(), looks.states, strict=True)])
        # A state with other traits is of another version.
        known = np.array([s is not None and len(s.traits) == TRAITS for s in looks.states], dtype=np.bool_)
        self.kept = known & (gap >= 0) & (gap <= LONGEST)
        self.gap = np.where(self.kept, gap, 0)
        self.fresh = ~known | (gap != 0)
        before = [s.bucket // rules.per_day if s else -1 for s in looks.states]
        self.new_period = np.array(before, dtype=np.int64) < looks.running // rules.per_day
        self.elapsed = np.clip(looks.elapsed, 0.0, 1.0)
        self.rates = np.full((count, LONGEST + 1), -1.0)  # the running bucket last
        self.traits = np.ones((count, TRAITS)) * 2
        self.evidence = np.zeros((count, len(DETECTORS)))
        self.ages = np.zeros((count, len(DETECTORS)), dtype=np.int64)
        self.ratings = np.zeros((count, 2))
        for i in np.flatnonzero(self.kept).tolist():
            self._take(i, looks.states[i])
        self.tilts = self._tilts()

    def _take(self, i: int, state: ItemAlerts | None) -> None:
        if state is None:
            return
        end = int(self.looks.running[i]) + 1
        begin = max(state.first, end - LONGEST - 1)
        rates = state.rates[begin - state.first : end - state.first]
        self.rates[i, LONGEST + 1 - (end - begin) :][: len(rates)] = rates
        self.traits[i] = state.traits
        self.evidence[i], self.ages[i], self.ratings[i] = state.evidence, state.ages, state.past_ratings

    def _tilts(self) -> Tilts:
        self.rates = np.where(self.rates >= 0, self.rates / THOUSAND, np.nan)
        self.traits /= THOUSAND
        self.evidence /= THOUSAND
        self.evidence[~self.kept] = 0.0
        self.traits[~self.kept] = 2.0
        count, stars = self.ratings.T
        dissatisfaction = (5 * count - stars) / 4 + _PRIOR_RATINGS * _PRIOR_DISSATISFACTION
        self.dissatisfaction = dissatisfaction / (count + _PRIOR_RATINGS) + _RATING_MARGIN
        self.knows_ratings = count >= _FEWEST_RATINGS
        return tilts_of(np.maximum(self.traits[:, SPREADS], LEAST_SPREAD), self.dissatisfaction)

    def counts(self, ago: int) -> Floats:
        """float64 (item, channel): what was counted so many buckets ago; 0 = in the running one."""
        looks = self.looks
        features = looks.now if ago == 0 else looks.closed[:, looks.closed.shape[1] - ago]
        features = np.nan_to_num(features.astype(np.float64))
        unhappy = (5 * features[:, REVIEWS] - features[:, STARS]) / 4
        return np.column_stack([features[:, COLUMNS], unhappy])

    def expected(self, ago: int) -> Floats:
        """float64 (item, channel): what was to be expected of a whole bucket, NaN = not known; of ratings how many
        there were."""
        looks = self.looks
        units = self.rates[:, LONGEST - ago]
        lines = units / self.traits[:, UNITS_A_LINE]
        carts, views = (self.traits[:, trait] for trait in (CARTS_A_LINE, VIEWS_A_LINE))
        features = looks.now if ago == 0 else looks.closed[:, looks.closed.shape[1] - ago]
        reviews = np.where(self.knows_ratings, np.nan_to_num(features[:, REVIEWS].astype(np.float64)), np.nan)
        columns = {
            LINES: lines,
            UNITS: units,
            CARTS: np.where(carts > 0, lines * carts, np.nan),
            VIEWS: np.where(views > 0, lines * views, np.nan),
            RATINGS: reviews,
        }
        return np.column_stack([columns[channel] for channel in range(len(CHANNELS))])

    def added(self, evidence: Floats, ages: Integers, ago: int, share: Floats) -> Evidence:
        """Evidence with a bucket's counts, of which `share` has passed. A detector begins anew where it has none."""
        part = np.where(CHANNEL_OF == RATINGS, 1.0, share[:, None])  # of ratings those counted are what is expected
        part = np.where(KIND_OF == BELOW, part * self.traits[:, USUAL_SHARE, None], part)
        expected = self.expected(ago)[:, CHANNEL_OF] * part
        gain = self.tilts.gain * self.counts(ago)[:, CHANNEL_OF] - self.tilts.cost * expected
        begins = evidence <= 0
        grown = np.maximum(evidence, 0.0) + gain
        is_known = np.isfinite(grown)
        return Evidence(np.where(is_known, grown, 0.0), np.where(begins | ~is_known, 0, ages))

    def folded(self) -> Evidence:
        """Evidence up to the begin of the running bucket."""
        evidence, ages = self.evidence, self.ages
        whole = np.ones(len(self.gap))
        for ago in range(int(self.gap.max(initial=0)), 0, -1):
            due = (self.gap >= ago)[:, None]
            grown = self.added(evidence, ages, ago, whole)
            evidence = np.where(due, np.maximum(grown.evidence, 0.0), evidence)
            ages = np.where(due, grown.ages + 1, ages)
        return Evidence(evidence, np.minimum(ages, LONGEST))

    def window(self, i: int, age: int, channel: int) -> tuple[float, float]:
        """Counted and expected in a channel, from so many buckets ago to now."""
        counted = expected = 0.0
        for ago in range(age, -1, -1):
            share = 1.0 if ago else float(self.elapsed[i])
            rate = float(self.expected(ago)[i, channel])
            if np.isfinite(rate):
                counted += float(self.counts(ago)[i, channel])
                expected += rate * (1.0 if channel == RATINGS else share)
        if channel == RATINGS:
            expected *= float(self.dissatisfaction[i])
        return counted, expected
