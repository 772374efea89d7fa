"""A recording as histories to train on: its orders, clicks and reviews, decoded and counted as a worker would."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.decoding import Decoded, DecodeLimits, decode, join_decoded
from feature_store.duplicates import drop_repeats
from feature_store.events import ORDER_ACTIONS, EventBatch, item_id_of
from feature_store.recording_columns import RecordColumns, due_times_ms
from feature_store.recording_files import Recording, RecordingError

_COUNTED = ("orders", "clicks", "reviews")
_DEFAULT_NAME = re.compile(r"(?:.*\.)?(orders|clicks|reviews)\.v\d+\Z")
_DAY_MS = 86_400_000
# As a worker's settings are by default: an id that comes again within a day, an event ten minutes ahead of its record.
_REPEATED_WITHIN_MS = {"orders": _DAY_MS, "clicks": 0, "reviews": _DAY_MS}
_MAX_FUTURE_MS = 600_000


def recorded_events(recording: Recording, currency: str = "") -> EventBatch:
    """All orders, clicks and reviews that can be used, each counted once, in no particular order.

    Topics are known by the schema that the recording names, else by their names (`….orders.v1`). Records that a worker
    would reject are left out; `currency` is the shop's, empty = not checked.

    Raises:
        RecordingError: it holds no orders, or a file is damaged.
    """
    topics = {topic: source for topic in recording.topics if (source := _source(recording, topic)) is not None}
    if "orders" not in topics.values():
        raise RecordingError(
            f"{recording.path} has no orders: of its topics ({', '.join(recording.topics) or 'none'}) none is named "
            "….orders.v1 or has that schema in the manifest"
        )
    parts = [_events(recording, topic, source, currency) for topic, source in topics.items()]
    events = join_decoded([Decoded(part, [], []) for part in parts]).events
    if not (events.action <= max(ORDER_ACTIONS)).any():
        raise RecordingError(f"{recording.path} holds no order that can be used")
    return events


def split_by_zone(events: EventBatch, calendar: ShopCalendar) -> list[tuple[str, EventBatch]]:
    """Events as shops without locations, one for each time zone that has items: (zone, events).

    Each (product, location) becomes a product of its own, by its item_id, which also gets the clicks and reviews that
    its product has without a location.
    """
    zones = {calendar.zone(location) for _, location in events.series}
    out = []
    for zone in sorted(zones):
        part = _as_items(events, [calendar.zone(location) == zone for _, location in events.series])
        if (part.action <= max(ORDER_ACTIONS)).any():
            out.append((zone, part))
    return out


def _as_items(events: EventBatch, chosen: Sequence[bool]) -> EventBatch:
    located: dict[str, list[int]] = {}
    for s, (product_id, location_id) in enumerate(events.series):
        if location_id and chosen[s]:
            located.setdefault(product_id, []).append(s)
    own = np.flatnonzero(np.array(chosen, dtype=np.bool_)[events.series_index])
    rows, series = [own], [events.series_index[own]]
    is_order = events.action <= max(ORDER_ACTIONS)
    place = {product_id: s for s, (product_id, location_id) in enumerate(events.series) if not location_id}
    for product_id, items in located.items():
        if product_id not in place:
            continue
        read_by_all = np.flatnonzero((events.series_index == place[product_id]) & ~is_order)
        for item in items:
            rows.append(read_by_all)
            series.append(np.full(len(read_by_all), item, dtype=np.int64))
    return _with_series(events, np.concatenate(rows), np.concatenate(series))


def _with_series(events: EventBatch, rows: NDArray[np.intp], series_index: NDArray[np.int64]) -> EventBatch:
    """Some rows, under other series; series without orders are no items and are left out."""
    orders = events.action[rows] <= max(ORDER_ACTIONS)
    items = np.unique(series_index[orders])
    kept = np.isin(series_index, items)
    rows, series_index = rows[kept], series_index[kept]
    columns = {
        name: getattr(events, name)[rows]
        for name in ("row", "event_time_ms", "action", "quantity", "unit_price", "rating", "one_off")
    }
    names = tuple((item_id_of(*events.series[s]), "") for s in items.tolist())
    return EventBatch(series=names, series_index=np.searchsorted(items, series_index), **columns)


def _source(recording: Recording, topic: str) -> str | None:
    named = recording.manifest.schema_versions.get(topic)
    if named is None:
        match = _DEFAULT_NAME.match(topic)
        named = match[1] if match else None
    return named if named in _COUNTED else None


def _events(recording: Recording, topic: str, source: str, currency: str) -> EventBatch:
    due_ms: dict[int, int] = {}
    parts = [_usable(columns, source, currency, due_ms) for columns in recording.columns(topic)]
    joined = join_decoded([Decoded(part, [], []) for part in parts] or [decode(source, [], [], DecodeLimits())]).events
    window_ms = _REPEATED_WITHIN_MS[source]
    ids = list(chain.from_iterable(part.event_id or [""] * len(part) for part in parts))
    if not window_ms or not any(ids):
        return joined
    return drop_repeats(dataclasses.replace(joined, event_id=ids), window_ms)


def _usable(columns: RecordColumns, source: str, currency: str, due_ms: dict[int, int]) -> EventBatch:
    """Of one partition's records; `due_ms` of its last record, by partition, is moved on."""
    p = columns.partition
    due = due_times_ms(columns.timestamps_ms, due_ms.get(p, -(2**62)))
    due_ms[p] = int(due[-1])
    # Whose partition a product belongs to is not asked here, but a record's key must be its product.
    limits = DecodeLimits(currency, partition=p, partition_of=lambda _: p)
    events = decode(source, columns.values, columns.keys, limits).events
    return events.take(events.event_time_ms <= due[events.row] + _MAX_FUTURE_MS)


def last_time_ms(events: EventBatch) -> int:
    """Time of the newest event."""
    return int(events.event_time_ms.max())
