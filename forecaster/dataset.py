"""Training and evaluation windows, cut from a history of events exactly as the worker would have seen them.

Inputs come from `features.bucket_rows` and `inputs.build_inputs`, the functions behind live forecasts; only the choice
of cutoff and items is made here. Everything is a pure function of the history and a seeded generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar, bucket_of, bucket_start_ms
from feature_store.events import Action, CalendarEntry, EventBatch, item_id_of
from feature_store.features import FEATURE_INDEX, UNITS_PER_ONE, BucketRows, bucket_rows
from feature_store.items import NO_PRODUCT_STATE, Item, ProductState
from forecaster.contract import WINDOWS
from forecaster.inputs import ModelInputs, Subject, build_inputs

_DAY_MS = 86_400_000
_UNITS = FEATURE_INDEX["units"]
_TIME_BITS = 42  # milliseconds until the year 2109
_BUCKET_BITS = 32


class Window(NamedTuple):
    """What a model is given at one cutoff, and what then happened. NaN = the history ends before that step does."""

    inputs: ModelInputs
    units: NDArray[np.float32]  # (item, step): each bucket's final total
    cumulative_units: NDArray[np.float32]  # (item, step): from the cutoff to each step's end


class History:
    """Events of a shop without locations, arranged so that a window at any cutoff is a few slices."""

    def __init__(
        self,
        batch: EventBatch,
        calendar: ShopCalendar,
        end_ms: int,
        products: Sequence[ProductState] | None = None,
        global_entries: Sequence[CalendarEntry] = (),
    ) -> None:
        """
        Args:
            batch: all events; every series is an item (its location is empty).
            calendar: the shop's time zone.
            end_ms: when the record ends; later targets are unknown rather than zero.
            products: what is known of each series' product, in the order of `batch.series`. Taken as known all along.
            global_entries: calendar of the whole shop, taken as known all along.
        """
        if any(location for _, location in batch.series):
            raise ValueError("a History holds a shop without locations: give each location a product_id of its own")
        order = np.argsort(batch.event_time_ms, kind="stable")
        self.batch = _at(batch, order)
        self.calendar = calendar
        self.end_ms = end_ms
        self.products = products
        self.global_entries = list(global_entries)
        self.item_ids = [item_id_of(product_id, "") for product_id, _ in batch.series]
        lines = np.isin(self.batch.action, (Action.SALE, Action.CANCEL, Action.RETURN))
        self.order_times = self.batch.event_time_ms[lines]
        self.order_series = self.batch.series_index[lines]
        self._order_key = np.sort((self.order_series << _TIME_BITS) + self.order_times)
        self._rows = {freq: bucket_rows(self.batch, freq, calendar) for freq in WINDOWS}
        self._row_keys = {freq: (rows.item << _BUCKET_BITS) + rows.bucket for freq, rows in self._rows.items()}

    @property
    def start_ms(self) -> int:
        """Time of the first event."""
        return int(self.batch.event_time_ms[0])

    def first_order_ms(self, series: NDArray[np.int64], start_ms: int) -> NDArray[np.int64]:
        """Each series' first order line at or after `start_ms`: int64 (item,); past the end of time where there is
        none."""
        key = series << _TIME_BITS
        at = np.searchsorted(self._order_key, key + start_ms)
        found = self._order_key[np.minimum(at, len(self._order_key) - 1)]
        same = (at < len(self._order_key)) & (found >> _TIME_BITS == series)
        return np.where(same, found - key, np.iinfo(np.int64).max)

    def order_lines(self, start_ms: int, end_ms: int) -> NDArray[np.int64]:
        """Number of order lines of each series in [start_ms, end_ms): int64 (series,)."""
        first, last = np.searchsorted(self.order_times, [start_ms, end_ms])
        return np.bincount(self.order_series[first:last], minlength=len(self.item_ids)).astype(np.int64)

    def window(
        self, freq: str, cutoff_ms: int, series: NDArray[np.int64], prediction_length: int, start_ms: int = 0
    ) -> Window:
        """Inputs and targets of some series at one cutoff. Events at or after `cutoff_ms` do not touch the inputs.

        `start_ms` is when the imagined worker began to listen, a local midnight: what came before it is unknown to the
        inputs. Every series has an order line in [start_ms, cutoff_ms).
        """
        zone = self.calendar.time_zone
        running = int(bucket_of(freq, np.array([cutoff_ms]), zone)[0])
        edges = bucket_start_ms(freq, running + np.arange(prediction_length + 1), zone)
        first_ms = self.first_order_ms(series, start_ms)
        if not (first_ms < cutoff_ms).all():
            raise ValueError("a series has no order line before the cutoff, so it is not an item yet")
        oldest = max(running - WINDOWS[freq].context_length, int(bucket_of(freq, np.array([start_ms]), zone)[0]))
        closed = self._stored(freq, series, oldest, running)
        open_rows = self._running_rows(freq, series, max(int(edges[0]), start_ms), cutoff_ms)
        inputs = build_inputs(
            freq,
            cutoff_ms,
            self._subjects(series, first_ms, cutoff_ms),
            BucketRows(*(np.concatenate(pair) for pair in zip(closed, open_rows, strict=True))),
            self.calendar,
            self.global_entries,
            prediction_length,
        )
        units, from_cutoff = self._targets(freq, series, running, edges, open_rows)
        return Window(inputs, units, from_cutoff)

    def _subjects(self, series: NDArray[np.int64], first_ms: NDArray[np.int64], cutoff_ms: int) -> list[Subject]:
        out = []
        for s, first in zip(series.tolist(), first_ms.tolist(), strict=True):
            item_id, product_id = self.item_ids[s], self.batch.series[s][0]
            product = NO_PRODUCT_STATE if self.products is None else self.products[s]
            out.append(Subject(Item(item_id, product_id, "", first, cutoff_ms), product))
        return out

    def _stored(self, freq: str, series: NDArray[np.int64], first: int, end: int) -> BucketRows:
        """Stored rows of the buckets [first, end)."""
        keys, rows = self._row_keys[freq], self._rows[freq]
        low = np.searchsorted(keys, (series << _BUCKET_BITS) + first)
        high = np.searchsorted(keys, (series << _BUCKET_BITS) + end)
        counts = np.maximum(high - low, 0)
        item = np.repeat(np.arange(len(series)), counts)
        offset = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = np.repeat(low, counts) + offset
        return BucketRows(item, rows.bucket[at], rows.values[at])

    def _running_rows(self, freq: str, series: NDArray[np.int64], start_ms: int, cutoff_ms: int) -> BucketRows:
        """The running bucket up to the cutoff: stored rows hold its whole, so it is summed anew from its events."""
        first, last = np.searchsorted(self.batch.event_time_ms, [start_ms, cutoff_ms]).tolist()
        rows = bucket_rows(_at(self.batch, slice(first, last)), freq, self.calendar)
        place = np.full(len(self.item_ids), -1, dtype=np.int64)
        place[series] = np.arange(len(series))
        asked = place[rows.item] >= 0
        return BucketRows(place[rows.item[asked]], rows.bucket[asked], rows.values[asked])

    def _targets(
        self, freq: str, series: NDArray[np.int64], running: int, edges: NDArray[np.int64], open_rows: BucketRows
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        steps = len(edges) - 1
        rows = self._stored(freq, series, running, running + steps)
        totals = np.zeros((len(series), steps), dtype=np.int64)
        totals[rows.item, rows.bucket - running] = rows.values[:, _UNITS]
        observed = np.zeros(len(series), dtype=np.int64)
        np.add.at(observed, open_rows.item, open_rows.values[:, _UNITS])
        units = (totals / UNITS_PER_ONE[_UNITS]).astype(np.float32)
        from_cutoff = ((np.cumsum(totals, axis=1) - observed[:, None]) / UNITS_PER_ONE[_UNITS]).astype(np.float32)
        unknown = edges[1:] > self.end_ms
        units[:, unknown] = np.nan
        from_cutoff[:, unknown] = np.nan
        return units, from_cutoff


def _at(batch: EventBatch, where: slice | NDArray[np.intp]) -> EventBatch:
    return EventBatch(
        batch.row[where],
        batch.event_time_ms[where],
        batch.series,
        batch.series_index[where],
        batch.action[where],
        batch.quantity[where],
        batch.unit_price[where],
        batch.rating[where],
        batch.one_off[where],
    )


class Sampling(NamedTuple):
    """Which windows to draw: cutoffs in [first_ms, last_ms), `items` of them at each cutoff."""

    first_ms: int
    last_ms: int
    items: int


# Days of past that a drawn window may see, and how often. None = all there is. A worker starts cold, so that windows
# of a few weeks must be as familiar as full ones.
_PAST_DAYS: tuple[tuple[tuple[int, int] | None, float], ...] = (
    (None, 0.45),
    ((28, 120), 0.10),
    ((7, 28), 0.33),
    ((0, 7), 0.12),
)
_SHARE_ON_BOUNDARY = 0.25


def draw(history: History, freq: str, sampling: Sampling, rng: np.random.Generator) -> Window | None:
    """A window at a random cutoff: any moment of the day, trading hours preferred, some exactly on a bucket's edge;
    items drawn by a power of their recent order lines, so that busy ones come more often and no item never.
    None where too few items are known at that cutoff."""
    zone = history.calendar.time_zone
    moment_ms = int(rng.integers(sampling.first_ms, sampling.last_ms))
    day = int(bucket_of("1d", np.array([moment_ms]), zone)[0])
    cutoff_ms = _cutoff_ms(freq, moment_ms, zone, rng)
    past = _PAST_DAYS[rng.choice(len(_PAST_DAYS), p=[share for _, share in _PAST_DAYS])][0]
    start_ms = 0
    if past is not None:
        start_ms = int(bucket_start_ms("1d", np.array([day - int(rng.integers(*past))]), zone)[0])
        # A week that the worker heard in part would be stored in part; here it is stored whole.
        start_ms = _start_of("1w", start_ms, zone) if freq == "1w" else start_ms
    lines = history.order_lines(max(start_ms, cutoff_ms - 56 * _DAY_MS), cutoff_ms)
    known = np.flatnonzero(history.order_lines(start_ms, cutoff_ms))
    if len(known) < sampling.items:
        return None
    weights = lines[known] ** 0.7 + 0.15
    series = rng.choice(known, size=sampling.items, replace=False, p=weights / weights.sum())
    return history.window(freq, cutoff_ms, series, WINDOWS[freq].max_prediction_length, start_ms)


def _cutoff_ms(freq: str, moment_ms: int, zone: str, rng: np.random.Generator) -> int:
    """A moment of the day that `moment_ms` lies in, or the start of its bucket."""
    hour_ms = 3_600_000
    boundary = rng.random() < _SHARE_ON_BOUNDARY
    if boundary and freq != "1h":
        return _start_of(freq, moment_ms, zone)
    trading = rng.random() < 0.8
    time_ms = int(rng.integers(6 * hour_ms, 21 * hour_ms) if trading else rng.integers(0, 23 * hour_ms))
    return _start_of("1d", moment_ms, zone) + (time_ms // hour_ms * hour_ms if boundary else time_ms)


def _start_of(freq: str, time_ms: int, zone: str) -> int:
    return int(bucket_start_ms(freq, bucket_of(freq, np.array([time_ms]), zone), zone)[0])


def stack(windows: Sequence[Window]) -> Window:
    """Windows of one freq and length as one, items after one another."""
    inputs = ModelInputs(*(np.concatenate(parts) for parts in zip(*(w.inputs for w in windows), strict=True)))
    units = np.concatenate([w.units for w in windows])
    return Window(inputs, units, np.concatenate([w.cumulative_units for w in windows]))
