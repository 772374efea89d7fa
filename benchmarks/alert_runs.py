"""A stream of orders through the worker's own alert rules, in event time.

Forecasts are made at the begin of every sixth hour by the model. As each hour begins every item is looked at, and
every five minutes those that have been ordered, as a worker would do it; lanes, states and levels are the worker's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.alert_streams import HOUR_MS, Stream
from feature_store.alert_state import AlertLevels, ItemAlerts
from feature_store.features import FEATURE_INDEX
from forecaster.contract import PAST_CHANNELS, WINDOWS
from forecaster.predictor import DemandModel
from forecaster.series import SeriesTable
from worker.alert_evidence import KINDS
from worker.alert_levels import added
from worker.alert_table import AlertRules, Looks
from worker.alerts import judge
from worker.transport import murmur2_partition

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
STEPS = 48
EVERY_H = 6  # hours between forecasts; a worker makes one an hour
_LANES = 4
_SLOT_MS = 300_000
_SLOTS = HOUR_MS // _SLOT_MS
_UNITS, _LINES = FEATURE_INDEX["units"], FEATURE_INDEX["order_lines"]
_COLUMNS = [PAST_CHANNELS.index(name) for name in ("units", "order_lines")]


class Forecasts(NamedTuple):
    """mean: float32 (origin, item, step). total: float32 (origin, item, quantile), of a day and an hour from there on.
    first: bucket of the first origin."""

    first: int
    mean: NDArray[np.float32]
    total: NDArray[np.float32]


def forecasts_of(model: DemandModel, table: SeriesTable, from_ms: int, end_ms: int) -> Forecasts:
    """Of all items, from before `from_ms` on."""
    rows = np.arange(len(table))
    hours = range(from_ms // HOUR_MS - EVERY_H, end_ms // HOUR_MS, EVERY_H)
    mean, total = [], []
    for hour in hours:
        outputs = model.forecast(table.windows(rows, np.full(len(rows), hour), STEPS).inputs)
        mean.append(outputs.mean)
        total.append(outputs.cumulative_quantiles[:, 24])
    return Forecasts(hours[0], np.stack(mean), np.stack(total))


class Opening(NamedTuple):
    """An alert as it opens."""

    item: int
    kind: str
    time_ms: int


class Counts(NamedTuple):
    """Orders and units by item and slot of five minutes from `first_slot` on: float32 (item, slot)."""

    first_slot: int
    orders: NDArray[np.float32]
    units: NDArray[np.float32]


def counts_of(stream: Stream, from_ms: int, end_ms: int) -> Counts:
    """Of a stretch of a stream."""
    first, last = from_ms // _SLOT_MS, end_ms // _SLOT_MS
    kept = (stream.time_ms >= from_ms) & (stream.time_ms < end_ms)
    cell = stream.item[kept] * (last - first) + stream.time_ms[kept] // _SLOT_MS - first
    size, shape = len(stream.item_ids) * (last - first), (len(stream.item_ids), last - first)
    orders = np.bincount(cell, minlength=size).reshape(shape)
    units = np.bincount(cell, weights=stream.units[kept], minlength=size).reshape(shape)
    return Counts(first, orders.astype(np.float32), units.astype(np.float32))


class Run:
    """One replay of a stream from `from_ms` to `end_ms`."""

    def __init__(self, stream: Stream, forecasts: Forecasts, rules: AlertRules, from_ms: int, end_ms: int) -> None:
        self._stream, self._forecasts, self._rules = stream, forecasts, rules
        self._first = from_ms // HOUR_MS
        length = WINDOWS["1h"].context_length
        self._length = length
        self._counts = counts_of(stream, from_ms - length * HOUR_MS, end_ms)
        shape = (len(stream.item_ids), -1, _SLOTS)
        by_hour = [array.reshape(shape).sum(axis=2) for array in (self._counts.units, self._counts.orders)]
        self._by_hour = np.stack(by_hour, axis=2)  # (item, hour, 2), the first `length` hours before from_ms
        first_ms = np.full(len(stream.item_ids), np.iinfo(np.int64).max)
        np.minimum.at(first_ms, stream.item, stream.time_ms)
        self._begin = first_ms // HOUR_MS
        lane_of = np.array([murmur2_partition(item_id, _LANES) for item_id in stream.item_ids])
        self._lanes = [np.flatnonzero(lane_of == lane) for lane in range(_LANES)]
        self._lane_of = lane_of
        self._states: list[ItemAlerts | None] = [None] * len(stream.item_ids)
        self._levels: list[AlertLevels | None] = [None] * _LANES
        self._openings: list[Opening] = []

    def follow(self, other: Run) -> None:
        """Go on where another run has come to."""
        self._states, self._levels = list(other._states), list(other._levels)

    def run(self, from_ms: int, end_ms: int) -> list[Opening]:
        """Hour after hour; returns what was opened."""
        everyone, self._openings = np.arange(len(self._stream.item_ids)), []
        for hour in range(from_ms // HOUR_MS, end_ms // HOUR_MS):
            self._look(everyone, hour, 0)
            begin = (hour - self._first + self._length) * _SLOTS
            touched = self._counts.orders[:, begin : begin + _SLOTS] > 0
            for slot in np.flatnonzero(touched.any(axis=0)).tolist():
                self._look(np.flatnonzero(touched[:, slot]), hour, slot + 1)
        return self._openings

    def _look(self, items: Integers, hour: int, slots: int) -> None:
        for lane in range(_LANES):
            own = items[self._lane_of[items] == lane]
            own = own[self._begin[own] < hour]
            if len(own):
                self._look_at(lane, own, hour, slots)

    def _look_at(self, lane: int, items: Integers, hour: int, slots: int) -> None:
        place = hour - self._first + self._length
        count = len(items)
        closed = np.zeros((count, self._length, len(PAST_CHANNELS)), dtype=np.float32)
        closed[:, :, _COLUMNS] = self._by_hour[items, place - self._length : place]
        hours = np.arange(hour - self._length, hour)
        closed[hours[None, :] < self._begin[items, None]] = np.nan
        now = np.zeros((count, len(PAST_CHANNELS)), dtype=np.float32)
        inside = slice(place * _SLOTS, place * _SLOTS + slots)
        now[:, _UNITS] = self._counts.units[items, inside].sum(axis=1)
        now[:, _LINES] = self._counts.orders[items, inside].sum(axis=1)
        origin = (hour - self._forecasts.first) // EVERY_H
        ago = (hour - self._forecasts.first) % EVERY_H
        mean = self._forecasts.mean[origin, items].astype(np.float64)
        looks = Looks(
            item_ids=[self._stream.item_ids[i] for i in items.tolist()],
            forecast_ids=[f"{i}.{origin}" for i in items.tolist()],
            cutoff_ms=hour * HOUR_MS + slots * _SLOT_MS,
            running=np.full(count, hour),
            elapsed=np.full(count, slots / _SLOTS),
            closed=closed,
            now=now,
            mean=mean[:, ago:],
            total=self._forecasts.total[origin, items].astype(np.float64),
            total_mean=np.maximum(mean[:, :25].sum(axis=1), 1e-3),
            states=[self._states[i] for i in items.tolist()],
            levels=self._levels[lane],
        )
        judged = judge(looks, self._rules)
        for i, state in zip(items.tolist(), judged.states, strict=True):
            if state is not None:
                self._states[i] = state
        if judged.levels is not None:
            self._levels[lane] = added(self._levels[lane], judged.levels)
        for one in judged.news:
            if one.state == "open":
                opening = Opening(int(items[one.row]), KINDS[one.episode.kind], looks.cutoff_ms)
                self._openings.append(opening)


class Verdict(NamedTuple):
    """found: of each spike how long after its begin it was told of, as a share of its length; NaN = it was not.
    false: openings that belong to no spike and are not raised in the untouched stream."""

    found: Floats
    false: int
    true: int


def verdict_of(spikes: list[tuple[int, int, int]], openings: list[Opening], untouched: list[Opening]) -> Verdict:
    """What openings are worth. spikes: (item, start, end). An opening belongs to a spike of its item while that lasts,
    and to the untouched stream where that has one of its kind within a day."""
    found = np.full(len(spikes), np.nan)
    false = true = 0
    for one in openings:
        own = [n for n, (item, start, end) in enumerate(spikes) if item == one.item and start <= one.time_ms <= end]
        if own and one.kind == "demand_above":
            n = own[0]
            start, end = spikes[n][1:]
            if np.isnan(found[n]):
                found[n] = (one.time_ms - start) / (end - start)
                true += 1
        elif not any(
            other.item == one.item and other.kind == one.kind and abs(other.time_ms - one.time_ms) <= 24 * HOUR_MS
            for other in untouched
        ):
            false += 1
    return Verdict(found, false, true)
