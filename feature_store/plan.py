"""What a batch of decoded records changes: pure maths from events and what a lane knows to one atomic store step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import Decoded
from feature_store.events import (
    ORDER_ACTIONS,
    CalendarEvent,
    EventBatch,
    ProductEvent,
    StateEvent,
    Tombstone,
    item_id_of,
)
from feature_store.features import Deltas, aggregate
from feature_store.items import NO_PRODUCT_STATE, Item, ProductState
from feature_store.layout import STORED_FREQS

_Times = NDArray[np.int64]

_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Retention:
    """How long what stands: buckets kept by stored frequency, under the shop's calendar."""

    calendar: ShopCalendar
    buckets: Mapping[str, int]

    def oldest_kept(self, freq: str, watermark_ms: int | None, locations: Sequence[str]) -> NDArray[np.int64]:
        """Oldest bucket that still stands for each location: int64 (location,). No watermark yet: everything does."""
        if watermark_ms is None:
            return np.full(len(locations), np.iinfo(np.int64).min)
        return self.oldest_kept_at(freq, np.full(len(locations), watermark_ms, dtype=np.int64), locations)

    def oldest_kept_at(self, freq: str, watermark_ms: NDArray[np.int64], locations: Sequence[str]) -> NDArray[np.int64]:
        """The same where each entry has a watermark of its own. `locations` is read where zones differ by location."""
        return self.calendar.buckets(freq, watermark_ms, locations) - self.buckets[freq]


class LaneView(NamedTuple):
    """What a lane knows of its partition. Read, never changed, by the functions here."""

    items: Mapping[str, Item]
    items_of_product: Mapping[str, Sequence[str]]
    products: Mapping[str, ProductState]


class Plan(NamedTuple):
    """Changes of one batch. Item and product states are whole new values."""

    series: list[str]  # series_ids that have sums
    sums: list[Deltas]  # their `series` index the list above
    oldest_kept: dict[str, NDArray[np.int64]]  # by stored frequency, one a series; older buckets may go
    items: dict[str, Item]
    products: dict[str, ProductState]
    touched: list[str]  # item_ids whose forecast is now owed


def watermarks(events: EventBatch, watermark_ms: int | None, *, newest_ms: int, out_of_orderness_ms: int) -> _Times:
    """The watermark that stood as each event arrived: int64 (event,), 0 = none yet.

    It is the one before the batch, moved on by the events of the batch that came earlier, none of which counts as newer
    than `newest_ms`. So how a topic is cut into batches does not decide which of its events are late. Only a lane's
    very first batch is its own clock: otherwise an event that is years late would count whenever it came first, as it
    may when Redis was emptied and all is read again.
    """
    seen = np.maximum.accumulate(np.minimum(events.event_time_ms, newest_ms)) - out_of_orderness_ms
    if watermark_ms is None:
        return np.full(len(events), max(int(seen[-1]), 0) if len(seen) else 0, dtype=np.int64)
    return np.maximum(watermark_ms, np.concatenate([[watermark_ms], seen[:-1]]))


def split_late(events: EventBatch, retention: Retention, watermark_ms: _Times) -> tuple[EventBatch, _Times]:
    """Part the events whose day has left the retention from the rest; the rows of the late ones come second.

    `watermark_ms` int64 (event,) is what each event is held against; 0 = none yet, nothing is late then.
    """
    # Later than two days before the retention's end nothing can be late, whatever the zone.
    surely = (retention.buckets["1d"] - 2) * _DAY_MS
    if not len(events) or int(events.event_time_ms.min()) >= int(watermark_ms.max()) - surely:
        return events, np.empty(0, dtype=np.int64)
    calendar = retention.calendar
    locations = [events.series[s][1] for s in events.series_index.tolist()] if calendar.by_location else ()
    oldest = retention.oldest_kept_at("1d", watermark_ms, locations)
    late = (watermark_ms > 0) & (calendar.buckets("1d", events.event_time_ms, locations) < oldest)
    return events.take(~late), events.row[late]


def plan_batch(decoded: Decoded, view: LaneView, retention: Retention, watermark_ms: int | None) -> Plan:
    """Plan one atomic step from decoded records without late events. An event corrects every frequency whose bucket
    still stands, and leaves the others alone."""
    events = decoded.events
    used = _present(events.series_index)
    if len(used) < len(events.series):  # late events and copies have left series without events
        series_index = np.searchsorted(used, events.series_index)
        series = tuple(events.series[s] for s in used.tolist())
        events = dataclasses.replace(events, series=series, series_index=series_index)
    ids = [item_id_of(product, location) for product, location in events.series]
    locations = [location for _, location in events.series]
    oldest = {freq: retention.oldest_kept(freq, watermark_ms, locations) for freq in STORED_FREQS}
    sums = [_standing(deltas, oldest) for deltas in aggregate(events, STORED_FREQS, retention.calendar)]
    products = _new_product_states(decoded, view.products)
    ordered, items = _ordered_items(events, ids, view.items)
    return Plan(
        series=ids,
        sums=[deltas for deltas in sums if len(deltas.series)],
        oldest_kept=oldest,
        items=items,
        products=products,
        touched=_touched(events, ordered, products, view),
    )


def _standing(deltas: Deltas, oldest_kept: Mapping[str, NDArray[np.int64]]) -> Deltas:
    stands = deltas.bucket >= oldest_kept[deltas.freq][deltas.series]
    if stands.all():
        return deltas
    return deltas._replace(series=deltas.series[stands], bucket=deltas.bucket[stands], values=deltas.values[stands])


def _ordered_items(
    events: EventBatch, ids: Sequence[str], known: Mapping[str, Item]
) -> tuple[list[str], dict[str, Item]]:
    """Items with order lines, and those of them of which something new is known."""
    orders = events.action <= max(ORDER_ACTIONS)
    series, times = events.series_index[orders], events.event_time_ms[orders]
    first = np.full(len(ids), np.iinfo(np.int64).max)
    last = np.full(len(ids), np.iinfo(np.int64).min)
    np.minimum.at(first, series, times)
    np.maximum.at(last, series, times // _HOUR_MS * _HOUR_MS)
    ordered, changed = [], {}
    first_ms, last_ms = first.tolist(), last.tolist()
    for s in _present(series).tolist():
        item_id, (product_id, location_id) = ids[s], events.series[s]
        ordered.append(item_id)
        old = known.get(item_id)
        if old is None:
            changed[item_id] = Item(item_id, product_id, location_id, first_ms[s], last_ms[s])
        elif first_ms[s] < old.first_event_ms or last_ms[s] > old.last_event_ms:
            begin, end = min(first_ms[s], old.first_event_ms), max(last_ms[s], old.last_event_ms)
            changed[item_id] = Item(item_id, product_id, location_id, begin, end)
    return ordered, changed


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


def _touched(events: EventBatch, ordered: Iterable[str], products: Iterable[str], view: LaneView) -> list[str]:
    """Items whose inputs changed: those with orders, and every item of a product with clicks, reviews or new state."""
    touched = dict.fromkeys(ordered)
    product_level = events.action > max(ORDER_ACTIONS)
    changed = {events.series[s][0] for s in _present(events.series_index[product_level]).tolist()} | set(products)
    for product_id in sorted(changed):
        touched.update(dict.fromkeys(view.items_of_product.get(product_id, ())))
    return list(touched)


def _present(series_index: NDArray[np.int64]) -> NDArray[np.intp]:
    """The indices that occur, ascending. What np.unique gives, without sorting."""
    return np.bincount(series_index).nonzero()[0]
