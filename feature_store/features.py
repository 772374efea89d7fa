"""FEATURES: what is remembered of events, and the pure maths from events to model context.

A feature is a sum over one bucket of event time, kept as an exact int64 in `units_per_one`-ths of its unit: integer
sums do not depend on the order in which events arrive. Everything here is numpy in, numpy out; training and the worker
call the very same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.events import Action, EventBatch


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
UNITS_PER_ONE: NDArray[np.int64] = np.array([feature.units_per_one for feature in FEATURES], dtype=np.int64)


class Deltas(NamedTuple):
    """Sums to add, one row per (series, bucket), sorted by series then bucket. A *series* is a (product, location)."""

    series: NDArray[np.int64]  # (row,): index into the batch's series
    bucket: NDArray[np.int64]  # (row,)
    values: NDArray[np.int64]  # (row, feature), in units_per_one-ths


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


def contributions(batch: EventBatch) -> NDArray[np.int64]:
    """What each event adds to each feature: int64 (event, feature). A one-off sale adds nothing: it is neither learnt
    from nor forecast. Returns are a feature of their own and never lower units or revenue."""
    out = np.zeros((len(batch), len(FEATURES)), dtype=np.int64)
    sale = (batch.action == Action.SALE) & ~batch.one_off
    back = (batch.action == Action.CANCEL) | (batch.action == Action.RETURN)
    out[:, FEATURE_INDEX["units"]] = np.where(sale, batch.quantity, 0)
    out[:, FEATURE_INDEX["returned_units"]] = np.where(back, batch.quantity, 0)
    out[:, FEATURE_INDEX["order_lines"]] = sale
    out[:, FEATURE_INDEX["revenue"]] = np.where(sale, _revenue_micros(batch.quantity, batch.unit_price), 0)
    out[:, FEATURE_INDEX["views"]] = batch.action == Action.VIEW
    out[:, FEATURE_INDEX["add_to_carts"]] = batch.action == Action.ADD_TO_CART
    out[:, FEATURE_INDEX["review_count"]] = batch.action == Action.REVIEW
    out[:, FEATURE_INDEX["rating_sum"]] = np.where(batch.action == Action.REVIEW, batch.rating, 0)
    return out


def aggregate(batch: EventBatch, freq: str, calendar: ShopCalendar) -> Deltas:
    """Sum a batch's contributions by series and bucket. The order of events does not matter; rows that would add
    nothing (a wishlist click, a one-off sale) are left out."""
    values = contributions(batch)
    locations = [batch.series[s][1] for s in batch.series_index.tolist()] if calendar.by_location else ()
    bucket = calendar.buckets(freq, batch.event_time_ms, locations)
    counted = np.flatnonzero(values.any(axis=1))
    if not len(counted):
        return Deltas(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, len(FEATURES)), np.int64))
    order = counted[np.lexsort((bucket[counted], batch.series_index[counted]))]
    series, bucket = batch.series_index[order], bucket[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(series) != 0) | (np.diff(bucket) != 0)])
    return Deltas(series[starts], bucket[starts], np.add.reduceat(values[order], starts, axis=0))


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
    order_channels = [i for i, feature in enumerate(FEATURES) if feature.source == "orders"]
    values = product.values[reads].copy()
    values[:, order_channels] = 0
    return BucketRows(
        np.r_[own.item, product.item[reads]],
        np.r_[own.bucket, product.bucket[reads]],
        np.concatenate([own.values, values]),
    )
