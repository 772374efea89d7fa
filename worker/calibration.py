"""Calibration: the model's quantiles, read at levels that keep what they promise. Pure functions: state in, state out.

A quantile promised at level τ is read off the model's own quantile function at another level, which is learnt from
forecasts whose bucket has closed. Both parts of that level are quantile trackers as in Angelopoulos, Candès and
Tibshirani (2023), "Conformal PID control for time series prediction": online gradient steps on the pinball loss, here
in level space, as Gibbs and Candès (2021), "Adaptive conformal inference under distribution shift", have it, so that
one step size suits items that sell once a year and items that sell a thousand a day.

* Segments. The items of a lane and time zone that sell about as much in a bucket share 19 levels, for the running
  bucket and for later ones. When a bucket has closed, level τ moves by `step × n / (n + few) × (τ - mean rank)`.
* Scale. Level 0.995 can't be read further out than the model's quantiles reach. Where more than a few hundredths of
  what was sold lies outside of the outermost adjusted quantiles, the quantiles of the segment are multiplied by a
  factor that grows (or falls) with that share, and its levels begin anew; a factor no longer needed is forgotten.
* Items. Each has one shift of all levels, on the log-odds scale, that moves by `item_step × mean over τ of (τ - rank)`
  and forgets by `forget` each time.

The *rank* of what was sold, at τ, is the chance that it counts as below the quantile: 0 above, 1 below, and for what
lies on an atom the part of the atom's mass that is below τ (the non-randomised probability integral transform of
Czado, Gneiting and Held 2009, "Predictive model assessment for count data"). Its mean is τ where a forecast of counts
is calibrated, which the share of sales below a quantile is not.

Ranks are of the model's stored quantiles under the levels of now, not of what was published then: a step does not
correct again what an earlier one has corrected while the outcome was awaited. Levels of a bucket are made of what was
learnt in buckets before it, in which sums of whole numbers were gathered, so that they do not depend on the order in
which items are forecast. What cannot be told apart by then, late events, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calibration_state import ItemCalibration, PastForecast, SegmentLevels
from forecaster.contract import QUANTILE_LEVELS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVELS: Floats = np.array(QUANTILE_LEVELS)
_COUNT = len(QUANTILE_LEVELS)
# Units a bucket at which items go over into the next segment: a factor of about three lets shapes of counts differ.
_VOLUMES: Floats = np.array([0.3, 1.0, 3.0, 10.0])
_VOLUME_COUNT = len(_VOLUMES) + 1
SEGMENTS = 2 * _VOLUME_COUNT  # first those of the running bucket, then those of later ones
_LEVEL_UNIT, _RANK_UNIT, _SHIFT_UNIT = 1_000_000, 10_000, 1_000_000
_THOUSANDTHS, _HUNDREDTHS = 1_000, 100
# No level is read beyond these: the model's outermost ones are 0.005 and 0.995, and what lies beyond is extrapolated.
_LOWEST, _HIGHEST = 0.002, 0.998
_JUDGED_WITHIN = 100  # buckets; every frequency's forecasts look back on more
_WIDEST = np.log(16.0)  # no scale beyond this factor, nor below its inverse


class Pace(NamedTuple):
    """How fast levels follow. Chosen on earlier weeks of dunnhumby and on Online Retail II, as the fastest that does
    not make forecasts of untouched streams worse; `benchmarks/calibration.py` judges it.

    step: of a segment's levels, for each bucket; few: forecasts at which a segment's step is halved.
    item_step, forget: of an item's shift, for each bucket.
    scale_step: of a segment's scale; beyond: share outside of the outermost quantiles, over what they promise, that is
        let pass; settle: change of the log scale beyond which the levels begin anew.
    """

    step: float = 0.08
    few: float = 10.0
    item_step: float = 0.05
    forget: float = 0.03
    scale_step: float = 1.0
    beyond: float = 0.02
    settle: float = 0.1
    scale_forget: float = 0.01


DEFAULT_PACE = Pace()


class Raw(NamedTuple):
    """What a model said of some items, less what had been observed in their running buckets.

    quantiles: float64 (item, step, quantile), ascending, at least 0. mean: float64 (item, step).
    cumulative: float64 (item, step, quantile).
    """

    quantiles: Floats
    mean: Floats
    cumulative: Floats


class Subjects(NamedTuple):
    """Whose forecasts they are.

    running: int64 (item,): the running buckets. zones: of each item. observed: int64 (item,), thousandths.
    states: of each item, None = it has none yet. segments: by zone.
    """

    running: Integers
    zones: Sequence[str]
    observed: Integers
    states: Sequence[ItemCalibration | None]
    segments: Mapping[str, SegmentLevels]


class Calibrated(NamedTuple):
    """Adjusted quantiles, and what to remember.

    states: of each item; None = nothing new. learnt: by zone, with the ranks of these items alone, to be added.
    """

    quantiles: Floats
    mean: Floats
    cumulative: Floats
    states: list[ItemCalibration | None]
    learnt: dict[str, SegmentLevels]


def owed_outcomes(subjects: Subjects) -> list[tuple[int, int]]:
    """(item, bucket) of every kept forecast that is to be judged now: what was sold then is asked for."""
    return [(i, past.bucket) for i, past in _closed(subjects)]


def _closed(subjects: Subjects) -> list[tuple[int, PastForecast]]:
    """Forecasts whose bucket has closed, by item. Of buckets long past the features may know nothing any more: what an
    item sold while it was not forecast for so long is not asked for."""
    return [
        (i, past)
        for i, state in enumerate(subjects.states)
        if state is not None and state.bucket < subjects.running[i]
        for past in state.past
        if subjects.running[i] - _JUDGED_WITHIN <= past.bucket < subjects.running[i]
    ]


def calibrate(raw: Raw, subjects: Subjects, sold: Integers, pace: Pace = DEFAULT_PACE) -> Calibrated:
    """Learn from forecasts whose buckets have closed, then adjust the new ones.

    1. Bring each zone's levels to its running bucket.
    2. Rank what was sold in the model's kept quantiles, as they would be read now; shift the items.
    3. Read the new quantiles at their levels.
    4. Keep, of each item's first forecast in a bucket, what is to be judged later.

    Args:
        raw: the model's.
        subjects: whose they are.
        sold: int64, thousandths of a unit, for each of `owed_outcomes`.
        pace: how fast.
    """
    running = {zone: int(subjects.running[i]) for i, zone in enumerate(subjects.zones)}
    now = {zone: _folded(subjects.segments.get(zone), bucket, pace) for zone, bucket in running.items()}  # 1
    zones = sorted(now)
    levels = np.stack([np.array(now[zone].levels).reshape(SEGMENTS, _COUNT) for zone in zones]) / _LEVEL_UNIT
    zone_of = np.array([zones.index(zone) for zone in subjects.zones], dtype=np.int64)
    scales = np.exp(np.stack([np.array(now[zone].scales) for zone in zones]) / _LEVEL_UNIT)
    shift = np.array([state.shift if state else 0 for state in subjects.states]) / _SHIFT_UNIT
    learnt = _learn(subjects, sold, _Learned(levels[zone_of], scales[zone_of], shift), zone_of)  # 2
    fresh = np.array([s is None or s.bucket < b for s, b in zip(subjects.states, subjects.running, strict=True)])
    shift = np.where(fresh, (1 - pace.forget) * shift + pace.item_step * learnt.surprise, shift)
    packed_shift = np.rint(shift * _SHIFT_UNIT).astype(np.int64)
    quantiles, mean, cumulative = _adjusted(
        raw, _Learned(levels[zone_of], scales[zone_of], packed_shift / _SHIFT_UNIT)
    )  # 3
    states = _states(raw, subjects, packed_shift, fresh)  # 4
    additions = {
        zone: SegmentLevels(*_head(now[zone]), learnt.counts[z].tolist(), learnt.ranks[z].tolist())
        for z, zone in enumerate(zones)
        if any(fresh[zone_of == z])
    }
    return Calibrated(quantiles, mean, cumulative, states, additions)


def added(stored: SegmentLevels | None, learnt: SegmentLevels) -> SegmentLevels:
    """What stands of a zone once `learnt` is in it; the same as forecasts_done.lua does in Redis."""
    if stored is None or stored.bucket < learnt.bucket:
        return learnt
    if stored.bucket > learnt.bucket:
        return stored
    counts = [a + b for a, b in zip(stored.counts, learnt.counts, strict=True)]
    ranks = [a + b for a, b in zip(stored.ranks, learnt.ranks, strict=True)]
    return SegmentLevels(*_head(stored), counts, ranks)


def _head(levels: SegmentLevels) -> tuple[int, list[int], list[int]]:
    return levels.bucket, levels.levels, levels.scales


class Outcomes(NamedTuple):
    """Of forecasts that were judged, how many sales fell below the 10 % quantile, between, and above the 90 % one."""

    below: float
    inside: float
    above: float


def outcomes_of(learnt: SegmentLevels) -> Outcomes:
    """What was learnt, as a person reads it."""
    ranks = np.array(learnt.ranks).reshape(SEGMENTS, _COUNT).sum(axis=0) / _RANK_UNIT
    below, not_above = (float(ranks[QUANTILE_LEVELS.index(level)]) for level in (0.1, 0.9))
    return Outcomes(below, not_above - below, sum(learnt.counts) - not_above)


def ranks_of(quantiles: Floats, sold: Floats) -> Floats:
    """Rank of what was sold, at each level: float64 (row, quantile), 0 to 1; see the module.

    Between two levels the mass of what lies strictly between two quantiles is taken to be spread evenly; a value that
    equals quantiles has the mass from the lowest to the highest of them, and half of the way to the next on each side.
    """
    edges = np.concatenate([[0.0], LEVELS, [1.0]])
    below = (quantiles < sold[:, None]).sum(axis=1)
    not_above = (quantiles <= sold[:, None]).sum(axis=1)
    on_atom = not_above > below
    low = np.where(on_atom, (edges[below] + edges[below + 1]) / 2, edges[below])
    high = np.where(on_atom, (edges[not_above] + edges[np.minimum(not_above + 1, _COUNT + 1)]) / 2, edges[below + 1])
    return np.asarray(np.clip((LEVELS - low[:, None]) / (high - low)[:, None], 0.0, 1.0))


def _folded(stored: SegmentLevels | None, bucket: int, pace: Pace) -> SegmentLevels:
    """A zone's levels and scales in a bucket: those before it, moved by what was learnt there."""
    nothing = [0] * SEGMENTS, [0] * (SEGMENTS * _COUNT)
    if stored is None:
        levels, scales = np.tile(LEVELS, (SEGMENTS, 1)), np.zeros(SEGMENTS)
    elif stored.bucket >= bucket:
        return SegmentLevels(bucket, stored.levels, stored.scales, *nothing)
    else:
        levels, scales = _moved(stored, pace)
    return SegmentLevels(bucket, _packed(levels), _packed(scales), *nothing)


def _packed(numbers: Floats) -> list[int]:
    packed: list[int] = np.rint(numbers * _LEVEL_UNIT).astype(np.int64).ravel().tolist()
    return packed


def _moved(stored: SegmentLevels, pace: Pace) -> tuple[Floats, Floats]:
    """Levels (segment, quantile) and log scales (segment) after a bucket."""
    levels = np.array(stored.levels).reshape(SEGMENTS, _COUNT) / _LEVEL_UNIT
    scales = np.array(stored.scales) / _LEVEL_UNIT
    counts = np.array(stored.counts)
    weight = counts / (counts + pace.few)
    ranks = np.array(stored.ranks).reshape(SEGMENTS, _COUNT) / _RANK_UNIT / np.maximum(counts, 1)[:, None]
    above = np.maximum(LEVELS[-1] - ranks[:, -1] - pace.beyond, 0.0)
    below = np.maximum(ranks[:, 0] - LEVELS[0] - pace.beyond, 0.0)
    change = pace.scale_step * weight * (above - below)
    moved = levels + (pace.step * weight)[:, None] * (LEVELS - ranks)
    moved = np.where((np.abs(change) > pace.settle)[:, None], LEVELS, moved)
    moved = np.clip(np.maximum.accumulate(moved, axis=1), _LOWEST, _HIGHEST)
    kept = np.where(counts > 0, 1 - pace.scale_forget, 1.0)
    return moved, np.clip(kept * scales + change, -_WIDEST, _WIDEST)


class _Learned(NamedTuple):
    """How each item's quantiles are read.

    levels: float64 (item, segment, quantile). scales: float64 (item, segment), factors. shift: float64 (item,).
    """

    levels: Floats
    scales: Floats
    shift: Floats


class _Learnt(NamedTuple):
    """counts: int64 (zone, segment); ranks: int64 (zone, segment × quantile); surprise: float64 (item,): mean over
    levels of level less rank, for the running bucket's forecast."""

    counts: Integers
    ranks: Integers
    surprise: Floats


def _learn(subjects: Subjects, sold: Integers, learned: _Learned, zone_of: Integers) -> _Learnt:
    zones, items = int(zone_of.max()) + 1, len(zone_of)
    counts = np.zeros((zones, SEGMENTS), dtype=np.int64)
    ranks = np.zeros((zones, SEGMENTS, _COUNT), dtype=np.int64)
    surprise = np.zeros(items)
    rows = _closed(subjects)
    if rows:
        item = np.array([i for i, _ in rows])
        segment = np.array([past.segment for _, past in rows])
        quantiles = np.array([past.quantiles for _, past in rows]) / _HUNDREDTHS
        rest = np.maximum(sold - np.array([past.observed for _, past in rows]), 0) / _THOUSANDTHS
        places = _places(_shifted(learned.levels[item, segment], learned.shift[item])[:, None])
        scaled = (quantiles * learned.scales[item, segment][:, None])[:, None]
        read = _read(scaled, places, np.zeros((len(rows), 1), dtype=np.int64))[:, 0]
        rank = ranks_of(_rounded(read, _is_whole(quantiles)[:, None]), rest)
        np.add.at(counts, (zone_of[item], segment), 1)
        np.add.at(ranks, (zone_of[item], segment), np.rint(rank * _RANK_UNIT).astype(np.int64))
        first = segment < _VOLUME_COUNT
        surprise[item[first]] = (LEVELS - rank[first]).mean(axis=1)
    return _Learnt(counts, ranks.reshape(zones, -1), surprise)


def _adjusted(raw: Raw, learned: _Learned) -> tuple[Floats, Floats, Floats]:
    """Quantiles, mean and cumulative quantiles at the levels and scales of each item's segments."""
    items, steps = raw.mean.shape
    places = _places(_shifted(learned.levels, learned.shift[:, None]))
    whole = _is_whole(raw.quantiles.reshape(items, -1))[:, None, None]
    segment = _segments(raw.mean)
    quantiles = _rounded(_read(raw.quantiles, places, segment) * _by_step(learned.scales, segment), whole)
    # A sum over steps moves as the steps do that it is of: by the segment of their mean.
    segment = _segments(np.cumsum(raw.mean, axis=1) / np.arange(1, steps + 1))
    cumulative = _rounded(_read(raw.cumulative, places, segment) * _by_step(learned.scales, segment), whole)
    cumulative[:, 0] = quantiles[:, 0]
    cumulative = np.maximum.accumulate(cumulative, axis=1)
    mean = np.maximum(raw.mean + (quantiles - raw.quantiles) @ _WEIGHTS, 0.0)
    return quantiles, mean, cumulative


def _by_step(scales: Floats, segment: Integers) -> Floats:
    """Each item and step's factor: float64 (item, step, 1)."""
    return np.take_along_axis(scales, segment, axis=1)[:, :, None]


# Of each quantile in the integral over levels: how far its neighbours are apart, halved; the outermost stand for the
# tails too.
_WEIGHTS: Floats = np.diff(np.concatenate([[0.0], (LEVELS[1:] + LEVELS[:-1]) / 2, [1.0]]))


def _segments(mean: Floats) -> Integers:
    """int64 (item, step): by what is expected to sell; the first step's are those of running buckets."""
    found = np.searchsorted(_VOLUMES, mean)
    found[:, 1:] += _VOLUME_COUNT
    return np.asarray(found, dtype=np.int64)


def _shifted(levels: Floats, shift: Floats) -> Floats:
    """Levels (…, quantile) moved by shifts (…) of their log-odds."""
    odds = levels / (1 - levels) * np.exp(shift)[..., None]
    return np.asarray(np.where(shift[..., None] == 0, levels, np.clip(odds / (1 + odds), _LOWEST, _HIGHEST)))


# How much further the tail beyond 0.995 reaches than from 0.975 to there, by e-fold of the chance of being exceeded.
_TAIL = 1 / np.log((1 - LEVELS[-2]) / (1 - LEVELS[-1]))


class _Places(NamedTuple):
    """Where levels lie among LEVELS: the level to the left, and how far on the way to the next one, more than 1 in the
    tail. int64 and float64 (item, segment, quantile)."""

    left: Integers
    part: Floats


def _places(levels: Floats) -> _Places:
    """Straight between two levels, exponential above the last (its rate that of the last two); below the first there
    is the first."""
    left = np.clip(np.searchsorted(LEVELS, levels, side="right") - 1, 0, _COUNT - 2)
    part = np.clip((levels - LEVELS[left]) / (LEVELS[left + 1] - LEVELS[left]), 0.0, 1.0)
    tail = np.maximum(np.log((1 - LEVELS[-1]) / (1 - levels)), 0.0) * _TAIL
    return _Places(left, part + tail)


def _read(quantiles: Floats, places: _Places, segment: Integers) -> Floats:
    """The quantile functions (item, step, quantile) at the places of each item and step's segment (item, step)."""
    items, steps, _ = quantiles.shape
    item = np.arange(items)[:, None]
    first = np.arange(0, quantiles.size, _COUNT).reshape(items, steps, 1)
    at = places.left[item, segment] + first
    flat = np.ascontiguousarray(quantiles).reshape(-1)
    low = flat.take(at)
    return np.asarray(low + places.part[item, segment] * (flat.take(at + 1) - low))


def _is_whole(quantiles: Floats) -> NDArray[np.bool_]:
    """Whether all of a row's quantiles are whole: the item is sold by the piece. bool (row,)."""
    return np.asarray((quantiles == np.rint(quantiles)).all(axis=1))


def _rounded(quantiles: Floats, whole: NDArray[np.bool_]) -> Floats:
    return np.where(whole, np.floor(quantiles + 0.5), quantiles)


def _states(raw: Raw, subjects: Subjects, shift: Integers, fresh: NDArray[np.bool_]) -> list[ItemCalibration | None]:
    """What to keep of each item's first forecast in a bucket: of that bucket and of the next one."""
    segment = _segments(raw.mean)[:, :2].tolist()
    hundredths = np.rint(raw.quantiles[:, :2] * _HUNDREDTHS).astype(np.int64)
    kept = hundredths.tolist()
    tells = hundredths[:, :, -1] > 0  # of a bucket in which the shop is shut all quantiles are 0: nothing to learn
    states: list[ItemCalibration | None] = []
    for i, state in enumerate(subjects.states):
        if not fresh[i]:
            states.append(None)
            continue
        bucket = int(subjects.running[i])
        past = [one for one in state.past if one.bucket >= bucket] if state is not None else []
        past += [
            PastForecast(bucket + k, segment[i][k], int(subjects.observed[i]) if k == 0 else 0, kept[i][k])
            for k in range(len(kept[i]))
            if tells[i, k]
        ]
        states.append(ItemCalibration(int(shift[i]), bucket, past))
    return states
