"""FEATURES: what is remembered of events, and the pure maths from events to model context.

A feature is a sum over one bucket of event time, kept as an exact int64 in `units_per_one`-ths of its unit: integer
sums do not depend on the order in which events arrive. Everything here is numpy in, numpy out; training and the worker
call the very same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import FIXED_MS, ShopCalendar
from feature_store.events import ORDER_ACTIONS, Action, EventBatch


class Feature(NamedTuple):
    """One rolling channel. Its bucket value is the sum of a contribution over the bucket's events."""

    name: str
    unit: str
    units_per_one: int
    source: str
    aggregates: str


FEATURES: tuple[Feature, ...] = (
    Feature("units", "pieces", 1000, "orders", "sum of quantity over sales"),
    Feature("returned_units", "pieces", 1000, "orders", "sum of quantity over cancels and returns"),
    Feature("order_lines", "events", 1, "orders", "count of sales"),
    Feature("revenue", "shop currency", 1_000_000, "orders", "sum of quantity * unit_price over sales"),
    Feature("views", "events", 1, "clicks", "count of view clicks"),
    Feature("add_to_carts", "events", 1, "clicks", "count of add_to_cart clicks"),
    Feature("review_count", "events", 1, "reviews", "count of reviews"),
    Feature("rating_sum", "stars", 1, "reviews", "sum of rating over reviews"),
)
FEATURE_INDEX: dict[str, int] = {feature.name: i for i, feature in enumerate(FEATURES)}
_SOURCE_ACTIONS: dict[str, Sequence[Action]] = {
    "orders": ORDER_ACTIONS,
    "clicks": (Action.VIEW, Action.ADD_TO_CART, Action.REMOVE_FROM_CART, Action.WISHLIST),
    "reviews": (Action.REVIEW,),
}
SOURCES: tuple[str, ...] = tuple(dict.fromkeys(feature.source for feature in FEATURES))
# Columns of FEATURES that the events of a source fill; they stand side by side.
SOURCE_FEATURES: dict[str, slice] = {
    source: slice(
        min(i for i, feature in enumerate(FEATURES) if feature.source == source),
        1 + max(i for i, feature in enumerate(FEATURES) if feature.source == source),
    )
    for source in SOURCES
}
_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
UNITS_PER_ONE: NDArray[np.int64] = np.array([feature.units_per_one for feature in FEATURES], dtype=np.int64)


class Deltas(NamedTuple):
    """Sums that events of one source add at one frequency, one row per (series, bucket), sorted by series then bucket.
    A *series* is a (product, location)."""

    source: str
    freq: str
    series: NDArray[np.int64]  # (row,): index into the batch's series
    bucket: NDArray[np.int64]  # (row,)
    values: NDArray[np.int64]  # (row, features of the source), in units_per_one-ths


class BucketRows(NamedTuple):
    """Stored buckets of many items, in any order; rows of the same item and bucket add up."""

    item: NDArray[np.int64]  # (row,): index into the items asked for
    bucket: NDArray[np.int64]  # (row,)
    values: NDArray[np.int64]  # (row, feature), in units_per_one-ths


class Context(NamedTuple):
    """What a model is told of the past of many items at one cutoff."""

    context: NDArray[np.float32]  # (item, context_length, feature), oldest first; NaN before the item's first bucket
    running: NDArray[np.float32]  # (item, feature): sums so far in the running bucket


def _revenue_micros(quantity: NDArray[np.int64], unit_price: NDArray[np.int64]) -> NDArray[np.int64]:
    """Thousandths times millionths, in millionths: rounded half to even line by line, without leaving int64."""
    whole, rest = np.divmod(unit_price, 1000)
    quotient, remainder = np.divmod(rest * quantity, 1000)
    up = (remainder > 500) | ((remainder == 500) & ((whole * quantity + quotient) % 2 == 1))
    return np.asarray(whole * quantity + quotient + up, dtype=np.int64)


def contributions(batch: EventBatch, source: str) -> NDArray[np.int64]:
    """What each event adds to each feature of a source: int64 (event, features of the source). A one-off sale adds
    nothing: it is neither learnt from nor forecast. Returns are a feature of their own and never lower units or
    revenue."""
    return np.column_stack(_CONTRIBUTIONS[source](batch)).astype(np.int64, copy=False)


def _order_contributions(batch: EventBatch) -> list[NDArray[Any]]:
    sale = (batch.action == Action.SALE) & ~batch.one_off
    back = (batch.action == Action.CANCEL) | (batch.action == Action.RETURN)
    revenue = _revenue_micros(batch.quantity, batch.unit_price)
    return [batch.quantity * sale, batch.quantity * back, sale, revenue * sale]


def _click_contributions(batch: EventBatch) -> list[NDArray[Any]]:
    return [batch.action == Action.VIEW, batch.action == Action.ADD_TO_CART]


def _review_contributions(batch: EventBatch) -> list[NDArray[Any]]:
    review = batch.action == Action.REVIEW
    return [review, batch.rating * review]


_CONTRIBUTIONS: dict[str, Callable[[EventBatch], list[NDArray[Any]]]] = {
    "orders": _order_contributions,
    "clicks": _click_contributions,
    "reviews": _review_contributions,
}


def aggregate(batch: EventBatch, freqs: Sequence[str], calendar: ShopCalendar) -> list[Deltas]:
    """Sum a batch's contributions by source, frequency, series and bucket. The order of events does not matter; rows
    that would add nothing (a wishlist click, a one-off sale) are left out.

    `freqs` go from fine to coarse. Coarser sums are made from the finest, of which there are fewer than events, where
    its buckets do not straddle the coarser ones.
    """
    out = []
    for source in _sources_of(batch):
        values = contributions(batch, source)
        counted = np.flatnonzero(values.any(axis=1))
        if not len(counted):
            continue
        series, times, values = batch.series_index[counted], batch.event_time_ms[counted], values[counted]
        for freq in freqs:
            locations = [batch.series[s][1] for s in series.tolist()] if calendar.by_location else ()
            deltas = Deltas(source, freq, *_sum_rows(series, calendar.buckets(freq, times, locations), values))
            out.append(deltas)
            if freq == freqs[0] and calendar.days_consist_of(freq):
                series, values = deltas.series, deltas.values
                times = deltas.bucket * FIXED_MS[freq]
    return out


def bucket_rows(batch: EventBatch, freq: str, calendar: ShopCalendar) -> BucketRows:
    """All features of a batch at one frequency: one row per (series, bucket), sorted by series then bucket; `item` is
    the index into the batch's series."""
    series, bucket, values = [_NO_ROWS], [_NO_ROWS], [np.empty((0, len(FEATURES)), dtype=np.int64)]
    for deltas in aggregate(batch, (freq,), calendar):
        wide = np.zeros((len(deltas.series), len(FEATURES)), dtype=np.int64)
        wide[:, SOURCE_FEATURES[deltas.source]] = deltas.values
        for column, part in ((series, deltas.series), (bucket, deltas.bucket), (values, wide)):
            column.append(part)
    rows = np.concatenate(series), np.concatenate(bucket), np.concatenate(values)
    return BucketRows(*(_sum_rows(*rows) if len(rows[0]) else rows))


def _sources_of(batch: EventBatch) -> list[str]:
    """Sources of which the batch has events."""
    if not len(batch):
        return []
    found = set(np.flatnonzero(np.bincount(batch.action)).tolist())
    return [source for source, actions in _SOURCE_ACTIONS.items() if not found.isdisjoint(actions)]


def _sum_rows(
    series: NDArray[np.int64], bucket: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the same series and bucket added up, sorted by series then bucket. At least one row comes in."""
    first = int(bucket.min())
    cell = series * (int(bucket.max()) - first + 1) + (bucket - first)
    order = np.argsort(cell)
    starts = run_starts(cell[order])
    chosen = order[starts]
    return series[chosen], bucket[chosen], np.add.reduceat(values[order], starts, axis=0)


def run_starts(*columns: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where runs of equal rows begin, in columns of at least one row. Written out, for a live lane asks this of a few
    rows many times a second: numpy's helpers would take several times as long."""
    begins = np.zeros(len(columns[0]), dtype=np.bool_)
    begins[0] = True
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return begins.nonzero()[0]


def context(
    rows: BucketRows,
    running_bucket: NDArray[np.int64],
    first_bucket: NDArray[np.int64],
    context_length: int,
) -> Context:
    """Dense past of many items from their stored buckets.

    Args:
        rows: stored buckets; those outside the context and after the running bucket are ignored.
        running_bucket: int64 (item,): the bucket that the cutoff falls into.
        first_bucket: int64 (item,): the bucket of the item's first event. Earlier buckets are NaN (not observed); later
            ones without a row are 0 (nothing happened).
        context_length: number of closed buckets before the running one.
    """
    items = len(running_bucket)
    sums = np.zeros((items, context_length + 1, len(FEATURES)), dtype=np.int64)
    position = rows.bucket - running_bucket[rows.item] + context_length
    inside = (position >= 0) & (position <= context_length)
    np.add.at(sums, (rows.item[inside], position[inside]), rows.values[inside])
    dense = (sums / UNITS_PER_ONE).astype(np.float32)
    times = running_bucket[:, None] - context_length + np.arange(context_length)
    dense[:, :context_length][times < first_bucket[:, None]] = np.nan
    return Context(context=np.ascontiguousarray(dense[:, :context_length]), running=dense[:, context_length].copy())


def pool_product_rows(own: BucketRows, product: BucketRows, located: Sequence[bool]) -> BucketRows:
    """Rows that items read: their own, and for items with a location the product's clicks and reviews.

    `product` rows carry the index of the item that reads them; orders without a location are a series of their own and
    do not flow into located items.
    """
    reads = np.array(located, dtype=bool)[product.item] if len(product.item) else np.empty(0, dtype=bool)
    values = product.values[reads].copy()
    values[:, SOURCE_FEATURES["orders"]] = 0
    return BucketRows(
        np.r_[own.item, product.item[reads]],
        np.r_[own.bucket, product.bucket[reads]],
        np.concatenate([own.values, values]),
    )
