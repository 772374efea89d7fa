"""Streams of orders for the benchmark of alerts: real ones, and the same with spikes laid over them.

A spike multiplies the rate at which an item is ordered by r for a while. The added orders are real ones of the item, of
the same hours of the week in the eight weeks before: each comes a Poisson number of times with mean (r - 1) / 8, moved
into the window. So their sizes are as dispersed as the shop's, and their number as independent customers would have it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.accuracy_data import numbers
from benchmarks.promotions import Promotions, dunnhumby_promotions
from feature_store.events import Action, EventBatch
from forecaster import online_retail
from forecaster.recorded_series import counted_series
from forecaster.series import SeriesTable

Integers = NDArray[np.int64]
HOUR_MS, DAY_MS, WEEK_MS = 3_600_000, 86_400_000, 604_800_000
MINUTE_MS = 60_000
DONOR_WEEKS = 8
LENGTHS_MIN = (15, 60, 180, 360, 720, 1440, 2880)
RATIOS = (2, 3, 5, 10)
_LEAST_UNITS = 20
_APART_MS = 14 * DAY_MS
_TRIES = 400


class Stream(NamedTuple):
    """Orders in the order of time. item: int64 (order,), index into item_ids. units: int64 (order,), whole."""

    item_ids: tuple[str, ...]
    time_ms: Integers
    item: Integers
    units: Integers
    time_zone: str

    def of(self, items: Integers) -> Stream:
        """Of some items alone."""
        number = np.full(len(self.item_ids), -1)
        number[items] = np.arange(len(items))
        kept = number[self.item] >= 0
        ids = tuple(self.item_ids[i] for i in items.tolist())
        return Stream(ids, self.time_ms[kept], number[self.item[kept]], self.units[kept], self.time_zone)

    def with_orders(self, time_ms: Integers, item: Integers, units: Integers) -> Stream:
        """With more orders."""
        times = np.concatenate([self.time_ms, time_ms])
        order = np.argsort(times, kind="stable")
        items, sizes = np.concatenate([self.item, item]), np.concatenate([self.units, units])
        return Stream(self.item_ids, times[order], items[order], sizes[order], self.time_zone)

    def table(self, end_ms: int) -> SeriesTable:
        """By hours, up to a time."""
        kept = self.time_ms < end_ms
        count = int(kept.sum())
        batch = EventBatch(
            row=np.arange(count, dtype=np.int64),
            event_time_ms=self.time_ms[kept],
            series=tuple((item_id, "") for item_id in self.item_ids),
            series_index=self.item[kept],
            action=np.full(count, Action.SALE, dtype=np.int8),
            quantity=self.units[kept] * 1000,
            unit_price=np.full(count, 1_000_000, dtype=np.int64),
            rating=np.zeros(count, dtype=np.int64),
            one_off=np.zeros(count, dtype=np.bool_),
        )
        return counted_series(batch, "1h", self.time_zone, end_ms=end_ms)


class Spike(NamedTuple):
    """usual: median of what the item sold in the same hours of the eight weeks before. added: units laid over."""

    item: int
    start_ms: int
    end_ms: int
    ratio: int
    usual: float
    usual_orders: float
    added: int


def online_retail_stream(folder: Path) -> Stream:
    """Online Retail II: sales of goods."""
    lines = online_retail.read(folder / "online_retail_ii.parquet")
    sale = lines.action == Action.SALE
    return Stream(
        lines.product_ids, lines.event_time_ms[sale], lines.product[sale], lines.quantity[sale], online_retail.TIME_ZONE
    )


def dunnhumby_stream(folder: Path) -> Stream:
    """dunnhumby: all stores together, goods only."""
    read = pq.read_table(
        folder / "dunnhumby_transactions.parquet", columns=["product_id", "quantity", "transaction_timestamp"]
    )
    product, quantity = numbers(read["product_id"], "int64"), numbers(read["quantity"], "int64")
    time_ms = numbers(read["transaction_timestamp"].cast("timestamp[ms]"), "datetime64[ms]").astype(np.int64)
    kept = np.flatnonzero((quantity > 0) & (quantity <= 100))
    order = kept[np.argsort(time_ms[kept], kind="stable")]
    ids, item = np.unique(product[order], return_inverse=True)
    return Stream(tuple(map(str, ids.tolist())), time_ms[order], item.astype(np.int64), quantity[order], "UTC")


class Shop(NamedTuple):
    """A stream, from when to when thresholds are chosen and detectors judged, and what forecasts know ahead."""

    stream: Stream
    tuned_from_ms: int
    judged_from_ms: int
    end_ms: int
    promotions: Promotions | None = None

    def table(self, stream: Stream) -> SeriesTable:
        """This one's or a like one's hours, for forecasts."""
        table = stream.table(self.end_ms)
        return table if self.promotions is None else self.promotions.added_to(table)


def _day_ms(*date: int) -> int:
    return (dt.date(*date) - dt.date(1970, 1, 1)).days * DAY_MS


def _online_retail(folder: Path) -> Shop:
    first = _day_ms(2011, 2, 28)  # the weights know what is before
    return Shop(online_retail_stream(folder), first, first + 4 * WEEK_MS, _day_ms(2011, 5, 1))


def _dunnhumby(folder: Path) -> Shop:
    stream = dunnhumby_stream(folder)
    end = int(stream.time_ms[-1]) // DAY_MS * DAY_MS
    return Shop(stream, end - 9 * WEEK_MS, end - 5 * WEEK_MS, end)


def _dunnhumby_promoted(folder: Path) -> Shop:
    return _dunnhumby(folder)._replace(promotions=dunnhumby_promotions(folder))


SHOPS: dict[str, Callable[[Path], Shop]] = {
    "online_retail": _online_retail,
    "dunnhumby": _dunnhumby,
    "dunnhumby_promotions": _dunnhumby_promoted,
}


def spikes_of(stream: Stream, from_ms: int, end_ms: int, seed: int, most: int) -> tuple[list[Spike], Stream]:
    """Draw spikes of items that usually sell enough, and lay them over the stream.

    An item, the time of a real order of the shop, a length and a ratio are drawn; kept is what usually sells at least
    20 units in that window (the median of the eight weeks before) and is two weeks from the item's other spikes.
    """
    rng = np.random.default_rng(seed)
    by_item = [np.flatnonzero(stream.item == i) for i in range(len(stream.item_ids))]
    inside = stream.time_ms[(stream.time_ms >= from_ms) & (stream.time_ms < end_ms)]
    spikes: list[Spike] = []
    added: list[tuple[Integers, Integers, Integers]] = []
    for _ in range(_TRIES * most):
        if len(spikes) == most:
            break
        length = int(rng.choice(LENGTHS_MIN)) * MINUTE_MS
        start, item = int(rng.choice(inside)), int(rng.integers(len(by_item)))
        if start + length > end_ms or any(s.item == item and abs(s.start_ms - start) < _APART_MS for s in spikes):
            continue
        times, units = stream.time_ms[by_item[item]], stream.units[by_item[item]]
        moved, sizes, by_week = [], [], np.zeros((DONOR_WEEKS, 2))
        for week in range(1, DONOR_WEEKS + 1):
            first, last = np.searchsorted(times, [start - week * WEEK_MS, start + length - week * WEEK_MS])
            moved.append(times[first:last] + week * WEEK_MS)
            sizes.append(units[first:last])
            by_week[week - 1] = units[first:last].sum(), last - first
        usual = float(np.median(by_week[:, 0]))
        if usual < _LEAST_UNITS:
            continue
        ratio = int(rng.choice(RATIOS))
        times_each = rng.poisson((ratio - 1) / DONOR_WEEKS, sum(map(len, moved)))
        extra_times, extra_units = (
            np.repeat(np.concatenate(moved), times_each),
            np.repeat(np.concatenate(sizes), times_each),
        )
        jitter = rng.integers(0, 5 * MINUTE_MS, len(extra_times))
        extra_times = np.minimum(extra_times + jitter, start + length - 1)
        added.append((extra_times, np.full(len(extra_times), item), extra_units))
        spikes.append(
            Spike(item, start, start + length, ratio, usual, float(np.mean(by_week[:, 1])), int(extra_units.sum()))
        )
    columns = [np.concatenate(part).astype(np.int64) for part in zip(*added, strict=True)]
    return spikes, stream.with_orders(columns[0], columns[1], columns[2])


def fast_and_slow(shop: Shop, fast: int, slow: int, seed: int) -> Integers:
    """Items that sold on the last 56 days before the thresholds are chosen: the `fast` with most orders, and `slow`
    others, drawn."""
    stream, first = shop.stream, shop.tuned_from_ms
    recent = (stream.time_ms >= first - DONOR_WEEKS * WEEK_MS) & (stream.time_ms < first)
    orders = np.bincount(stream.item[recent], minlength=len(stream.item_ids))
    ranked = np.argsort(-orders, kind="stable")
    ranked = ranked[orders[ranked] > 0]
    rest = np.random.default_rng(seed).permutation(ranked[fast:])[:slow]
    return np.sort(np.concatenate([ranked[:fast], rest]))
