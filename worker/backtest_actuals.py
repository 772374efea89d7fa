"""Actuals: what was sold of each item in each bucket of a recording, counted by the worker's own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import FREQS, ShopCalendar, bucket_start_ms
from feature_store.decoding import DecodeLimits, decode
from feature_store.duplicates import drop_repeats
from feature_store.events import EventBatch, item_id_of
from feature_store.features import FEATURE_INDEX, UNITS_PER_ONE, aggregate
from feature_store.recording_files import Merged

_UNITS = FEATURE_INDEX["units"]  # also its column among those of orders, which come first
_BUCKET_BITS = 32
_MOST_UNMERGED = 1_000_000
_NOTHING: NDArray[np.int64] = np.empty(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class CountingRules:
    """Which orders count: those that a lane would count. `freqs` are the forecast frequencies."""

    calendar: ShopCalendar
    freqs: Sequence[str]
    limits: DecodeLimits
    dedup_window_ms: int
    max_future_ms: int


class _Sums(NamedTuple):
    """Units by item and bucket, which one key holds."""

    keys: NDArray[np.int64]
    units: NDArray[np.int64]


class Actuals:
    """Gross units by item, frequency and bucket; in memory a number for each bucket in which an item was sold."""

    def __init__(self, calendar: ShopCalendar, freqs: Sequence[str], end_ms: int) -> None:
        """`end_ms`: event time at which the recording ends; buckets that end later are not known."""
        self._calendar, self._end_ms = calendar, end_ms
        self._item: dict[str, int] = {}
        self._sums = {freq: _Sums(_NOTHING, _NOTHING) for freq in freqs}
        self._parts: dict[str, list[_Sums]] = {freq: [] for freq in freqs}

    def add(self, events: EventBatch) -> None:
        """Count events; each only once."""
        ids = [item_id_of(product_id, location_id) for product_id, location_id in events.series]
        place = np.array([self._item.setdefault(item_id, len(self._item)) for item_id in ids], dtype=np.int64)
        freqs = [freq for freq in FREQS if freq in self._parts]
        for deltas in aggregate(events, freqs, self._calendar):
            if deltas.source == "orders":
                keys = (place[deltas.series] << _BUCKET_BITS) + deltas.bucket
                self._parts[deltas.freq].append(_Sums(keys, deltas.values[:, _UNITS]))
                if sum(len(part.keys) for part in self._parts[deltas.freq]) > _MOST_UNMERGED:
                    self._settled(deltas.freq)

    def _settled(self, freq: str) -> _Sums:
        """All that has been added, one number a key, by ascending keys."""
        if self._parts[freq]:
            joined = [self._sums[freq], *self._parts[freq]]
            keys, which = np.unique(np.concatenate([part.keys for part in joined]), return_inverse=True)
            units = np.zeros(len(keys), dtype=np.int64)
            np.add.at(units, which, np.concatenate([part.units for part in joined]))
            self._sums[freq] = _Sums(keys, units)
            self._parts[freq].clear()
        return self._sums[freq]

    def targets(
        self, freq: str, item_ids: Sequence[str], running: NDArray[np.int64], zones: Sequence[str], steps: int
    ) -> NDArray[np.float32]:
        """Units of the running bucket and those after it: float32 (item, step), NaN = not ended in the recording.

        Args:
            freq: one of the forecast frequencies.
            item_ids: the items.
            running: int64 (item,): the first step's bucket.
            zones: each item's time zone.
            steps: how many.
        """
        units = self._units_from(freq, item_ids, running, steps)
        out: NDArray[np.float32] = (units / UNITS_PER_ONE[_UNITS]).astype(np.float32)
        ended = self._ended(freq, running, zones, steps)
        out[np.arange(steps) >= ended[:, None]] = np.nan
        return out

    def history(self, freq: str, item_id: str, first: int, buckets: int) -> NDArray[np.float64]:
        """Units of one item in `buckets` buckets from `first` on: float64 (bucket,)."""
        units = self._units_from(freq, [item_id], np.array([first]), buckets)[0]
        return np.asarray(units / UNITS_PER_ONE[_UNITS], dtype=np.float64)

    def totals(self, freq: str) -> dict[str, float]:
        """Units of each item over the whole recording."""
        sums = np.zeros(len(self._item), dtype=np.int64)
        settled = self._settled(freq)
        np.add.at(sums, settled.keys >> _BUCKET_BITS, settled.units)
        return dict(zip(self._item, (sums / UNITS_PER_ONE[_UNITS]).tolist(), strict=True))

    def _units_from(
        self, freq: str, item_ids: Sequence[str], first: NDArray[np.int64], buckets: int
    ) -> NDArray[np.int64]:
        keys, units = self._settled(freq)
        item = np.array([self._item.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        begin = (item << _BUCKET_BITS) + first
        low, high = np.searchsorted(keys, begin), np.searchsorted(keys, begin + buckets)
        counts = np.where(item >= 0, high - low, 0)
        row = np.repeat(np.arange(len(item)), counts)
        at = np.repeat(low, counts) + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        out = np.zeros((len(item), buckets), dtype=np.int64)
        out[row, keys[at] - begin[row]] = units[at]
        return out

    def _ended(self, freq: str, running: NDArray[np.int64], zones: Sequence[str], steps: int) -> NDArray[np.int64]:
        """How many of each item's steps have ended: int64 (item,)."""
        found: dict[tuple[int, str], int] = {}
        pairs = list(zip(running.tolist(), zones, strict=True))
        for bucket, zone in set(pairs):
            ends = bucket_start_ms(freq, bucket + 1 + np.arange(steps), zone)
            found[bucket, zone] = int((ends <= self._end_ms).sum())
        return np.array([found[pair] for pair in pairs], dtype=np.int64)


def count_actuals(
    stretches: Iterable[Merged], rules: CountingRules, partitions: Collection[int], end_ms: int
) -> Actuals:
    """What was sold in the order records of some partitions. Rejects and duplicates do not count, as in a lane; what
    came too late for the features does: it was sold all the same."""
    actuals = Actuals(rules.calendar, rules.freqs, end_ms)
    seen = {partition: _SeenIds(rules.dedup_window_ms) for partition in partitions}
    for stretch in stretches:
        for partition in np.unique(stretch.partition).tolist():
            if partition in seen:
                rows = np.flatnonzero(stretch.partition == partition)
                actuals.add(_countable(stretch, rows, rules, partition, seen[partition]))
    return actuals


def _countable(
    stretch: Merged, rows: NDArray[np.intp], rules: CountingRules, partition: int, seen: _SeenIds
) -> EventBatch:
    chosen = rows.tolist()
    limits = dataclasses.replace(rules.limits, partition=partition)
    values, keys = [stretch.values[row] for row in chosen], [stretch.keys[row] for row in chosen]
    events = decode("orders", values, keys, limits).events
    due_ms = stretch.due_ms[rows][events.row]
    return seen.fresh(events.take(events.event_time_ms <= due_ms + rules.max_future_ms))


class _SeenIds:
    """Ids of a partition's events by generation of event time, as the feature store keeps them."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._ids: dict[int, set[str]] = {}

    def fresh(self, events: EventBatch) -> EventBatch:
        """The events that have not come before."""
        if not self._window_ms or not events.event_id or not len(events):
            return events
        events = drop_repeats(events, self._window_ms)
        ids = np.array(events.event_id, dtype=object)
        generations = events.event_time_ms // self._window_ms
        keep = np.ones(len(events), dtype=np.bool_)
        for generation in np.unique(generations).tolist():
            rows = np.flatnonzero((generations == generation) & (ids != ""))
            own = set(ids[rows].tolist())
            beside = [self._ids.get(g, set()) for g in range(generation - 1, generation + 2)]
            known = set().union(*(own & others for others in beside))
            if known:
                keep[rows] = [event_id not in known for event_id in ids[rows].tolist()]
        for generation in np.unique(generations).tolist():
            self._ids.setdefault(generation, set()).update(ids[(generations == generation) & (ids != "")].tolist())
        newest = int(generations.max())
        for generation in [g for g in self._ids if g < newest - 2]:
            del self._ids[generation]
        return events.take(keep)
