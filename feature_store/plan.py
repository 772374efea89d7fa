"""What a batch of decoded records changes: pure maths from events and what a lane knows to one atomic store step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.events import (
    Action,
    CalendarEvent,
    Decoded,
    EventBatch,
    ProductEvent,
    StateEvent,
    Tombstone,
    item_id_of,
)
from feature_store.features import aggregate
from feature_store.items import NO_PRODUCT_STATE, Item, ProductState
from feature_store.layout import STORED_FREQS, SeriesSums

_ORDER_ACTIONS = (Action.SALE, Action.CANCEL, Action.RETURN)


@dataclass(frozen=True)
class Retention:
    """How long what stands: buckets kept by stored frequency, under the shop's calendar."""

    calendar: ShopCalendar
    buckets: Mapping[str, int]

    def oldest_kept(self, freq: str, watermark_ms: int | None, locations: Sequence[str]) -> NDArray[np.int64]:
        """Oldest bucket that still stands for each location: int64 (location,). No watermark yet: everything does."""
        if watermark_ms is None:
            return np.full(len(locations), np.iinfo(np.int64).min)
        watermark = np.full(len(locations), watermark_ms, dtype=np.int64)
        return self.calendar.buckets(freq, watermark, locations) - self.buckets[freq]


class LaneView(NamedTuple):
    """What a lane knows of its partition. Read, never changed, by the functions here."""

    items: Mapping[str, Item]
    items_of_product: Mapping[str, Sequence[str]]
    products: Mapping[str, ProductState]


class Plan(NamedTuple):
    """Changes of one batch. Item and product states are whole new values."""

    sums: list[SeriesSums]
    items: dict[str, Item]
    products: dict[str, ProductState]
    touched: list[str]  # item_ids whose forecast is now owed


def split_late(
    events: EventBatch, retention: Retention, watermark_ms: int | None
) -> tuple[EventBatch, NDArray[np.int64]]:
    """Part the events whose day has left the retention from the rest; the rows of the late ones come second."""
    locations = [location for _, location in events.series]
    oldest = retention.oldest_kept("1d", watermark_ms, locations)
    event_locations = [locations[s] for s in events.series_index.tolist()] if retention.calendar.by_location else ()
    day = retention.calendar.buckets("1d", events.event_time_ms, event_locations)
    late = day < oldest[events.series_index]
    return events.take(~late), events.row[late]


def plan_batch(decoded: Decoded, view: LaneView, retention: Retention, watermark_ms: int | None) -> Plan:
    """Plan one atomic step from decoded records without late events. An event corrects every frequency whose bucket
    still stands, and leaves the others alone."""
    events = decoded.events
    series_ids = [item_id_of(product, location) for product, location in events.series]
    products = _new_product_states(decoded, view.products)
    items = _new_items(events, series_ids, view.items)
    return Plan(
        sums=_sums(events, series_ids, retention, watermark_ms),
        items=items,
        products=products,
        touched=_touched(events, items, products, view),
    )


def _sums(
    events: EventBatch, series_ids: Sequence[str], retention: Retention, watermark_ms: int | None
) -> list[SeriesSums]:
    locations = [location for _, location in events.series]
    out = []
    for freq in STORED_FREQS:
        deltas = aggregate(events, freq, retention.calendar)
        oldest = retention.oldest_kept(freq, watermark_ms, locations)
        stands = np.flatnonzero(deltas.bucket >= oldest[deltas.series])
        table = np.column_stack([deltas.bucket, deltas.values])[stands].tolist()
        rows_of: dict[int, list[list[int]]] = {}
        for series, row in zip(deltas.series[stands].tolist(), table, strict=True):
            rows_of.setdefault(series, []).append(row)
        for series, rows in rows_of.items():
            # Before the first watermark nothing is old, and Redis' doubles could not hold int64's minimum.
            kept = int(oldest[series]) if watermark_ms is not None else 0
            out.append(SeriesSums(freq, series_ids[series], kept, retention.buckets[freq] + 1, rows))
    return out


def _new_items(events: EventBatch, series_ids: Sequence[str], known: Mapping[str, Item]) -> dict[str, Item]:
    orders = np.isin(events.action, _ORDER_ACTIONS)
    series, times = events.series_index[orders], events.event_time_ms[orders]
    first = np.full(len(series_ids), np.iinfo(np.int64).max)
    last = np.full(len(series_ids), np.iinfo(np.int64).min)
    np.minimum.at(first, series, times)
    np.maximum.at(last, series, times)
    out = {}
    for s in np.unique(series).tolist():
        item_id, (product_id, location_id) = series_ids[s], events.series[s]
        first_ms, last_ms = int(first[s]), int(last[s])
        old = known.get(item_id)
        if old is not None:
            first_ms, last_ms = min(first_ms, old.first_event_ms), max(last_ms, old.last_event_ms)
        out[item_id] = Item(item_id, product_id, location_id, first_ms, last_ms)
    return out


def _new_product_states(decoded: Decoded, known: Mapping[str, ProductState]) -> dict[str, ProductState]:
    out: dict[str, ProductState] = {}
    for _, event in decoded.states:
        product_id = event.product_id
        out[product_id] = _after(out.get(product_id) or known.get(product_id, NO_PRODUCT_STATE), event)
    return out


def _after(state: ProductState, event: StateEvent | Tombstone) -> ProductState:
    """The state after one message; a message older than the one it would replace changes nothing."""
    if isinstance(event, Tombstone):
        withdrawn: dict[str, Any] = {"calendar": ()} if event.source == "calendar" else {"delisted": True}
        return msgspec.structs.replace(state, **withdrawn)
    if isinstance(event, ProductEvent):
        return _after_product(state, event)
    if isinstance(event, CalendarEvent):
        if event.event_time < state.calendar_known_from_ms:
            return state
        return msgspec.structs.replace(state, calendar_known_from_ms=event.event_time, calendar=tuple(event.entries))
    if event.event_time < state.stock.get(event.location_id, (0, 0, 0))[0]:
        return state
    level = (event.event_time, round(event.on_hand * 1000), round(event.on_order * 1000))
    return msgspec.structs.replace(state, stock={**state.stock, event.location_id: level})


def _after_product(state: ProductState, event: ProductEvent) -> ProductState:
    if event.event_time < state.known_from_ms:
        return state
    return msgspec.structs.replace(
        state,
        known_from_ms=event.event_time,
        title=event.title,
        description=event.description,
        category=event.category,
        brand=event.brand,
        launch_ms=event.launch_time,
        delisted=False,
    )


def _touched(events: EventBatch, items: Mapping[str, Item], products: Iterable[str], view: LaneView) -> list[str]:
    """Items whose inputs changed: those with orders, and every item of a product with clicks, reviews or new state."""
    touched = dict.fromkeys(items)
    product_level = ~np.isin(events.action, _ORDER_ACTIONS)
    changed = {events.series[s][0] for s in np.unique(events.series_index[product_level]).tolist()} | set(products)
    for product_id in sorted(changed):
        touched.update(dict.fromkeys(view.items_of_product.get(product_id, ())))
    return list(touched)
