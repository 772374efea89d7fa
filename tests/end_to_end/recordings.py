"""A small recording with everything in it that a shop's topics may hold, made by a seeded generator."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from feature_store.recording_files import Manifest, RecordColumns, Recording, RecordingWriter, TopicEntry
from worker.transport import murmur2_partition

PARTITIONS = 3
START_MS = int(dt.datetime(2026, 3, 4, 16, tzinfo=dt.UTC).timestamp() * 1000)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
_KEYED = ("orders", "clicks", "reviews", "products", "calendar", "stock")
_NOT_JSON = b'{"event_time": 17, '


class Written(NamedTuple):
    """A record, before it has a place."""

    source: str
    key: str
    value: bytes | None
    timestamp_ms: int
    headers: list[tuple[str, bytes | None]] | None = None


def topic_of(source: str) -> str:
    """As the settings name it by default."""
    return f"shop.{source}.v1"


def write_recording(path: Path, records: Sequence[Written], source: str = "elsewhere:9092") -> Recording:
    """Records in the order in which each partition took them."""
    topics = {topic_of(source): TopicEntry(PARTITIONS) for source in _KEYED}
    topics[topic_of("calendar_global")] = TopicEntry(1)
    places: dict[tuple[str, int], list[Written]] = {}
    for record in records:
        count = topics[topic_of(record.source)].partition_count
        places.setdefault((topic_of(record.source), murmur2_partition(record.key, count)), []).append(record)
    with RecordingWriter(path, Manifest(source, START_MS, topics), roll_rows=700) as writer:
        for (topic, partition), own in sorted(places.items()):
            times = np.array([record.timestamp_ms for record in own], dtype=np.int64)
            writer.append(
                RecordColumns(
                    topic,
                    partition,
                    np.arange(len(own), dtype=np.int64) + 40,  # offsets began before the recording did
                    times,
                    np.ones(len(own), dtype=np.int8),
                    [record.key.encode() for record in own],
                    [record.value for record in own],
                    [record.headers for record in own],
                )
            )
    return Recording.open(path)


def shop_records(products: int, hours: int, orders: int) -> list[Written]:
    """A shop from 16:00 UTC on, so that some hours hold midnight in all zones: orders at two locations and at none,
    clicks, reviews and stock in disorder; prices that change, products delisted and listed again; and what no worker
    can use: duplicates, events too late, events from the future, keys of others, broken JSON."""
    choose = random.Random(11)
    names = [f"product-{n}" if n % 9 else f"café {n}" for n in range(products)]
    records = [_state("products", name, START_MS, title=name, category=category_of(name)) for name in names]
    records += [_calendar(name, START_MS, 2.0 + n % 7) for n, name in enumerate(names)]
    records.append(_holiday("christmas", START_MS, START_MS + 30 * HOUR_MS))
    span_ms = hours * HOUR_MS
    for n in range(orders):
        when_ms = START_MS + 1000 + int(span_ms * n / orders) + choose.randrange(20_000)
        records += _order(choose, n, choose.choice(names), when_ms)
        name = choose.choice(names)
        if n % 2 == 0:
            action = choose.choice(["view", "view", "add_to_cart", "wishlist"])
            records.append(_event("clicks", name, when_ms, choose.randrange(4 * HOUR_MS), action=action))
        if n % 17 == 0:
            records.append(_event("reviews", name, when_ms, choose.randrange(DAY_MS), rating=choose.randint(1, 5)))
        if n % 23 == 0:
            records.append(_state("stock", name, when_ms, on_hand=choose.randrange(50), location_id="azores"))
        if n % 41 == 0:
            records.append(_calendar(name, when_ms, choose.randrange(1, 9)))
        if n % 67 == 0:
            records.append(Written("products", name, None, when_ms))
        if n % 67 == 40:
            back = choose.choice(names)
            records.append(_state("products", back, when_ms, title="back", category=category_of(back)))
        if n == orders // 2:
            records.append(_holiday("stocktaking", when_ms, when_ms + 20 * HOUR_MS))
    return records


def category_of(name: str) -> str:
    """Of a product; some have none."""
    return ("mugs", "pots", "")[sum(name.encode()) % 3]


def _order(choose: random.Random, n: int, name: str, when_ms: int) -> list[Written]:
    """An order, now and then a copy of it, or something in its place that can't be counted."""
    ago_ms = choose.randrange(3_000) if n % 5 else choose.randrange(6 * HOUR_MS)
    fields: dict[str, Any] = {
        "event_id": f"order-{n}",
        "quantity": choose.randint(1, 6),
        "unit_price": choose.randrange(100, 900) / 100,
        "kind": choose.choice(["sale", "sale", "sale", "sale", "return", "cancel"]),
        "location_id": choose.choice(["", "lisbon", "azores"]),
    }
    if n % 31 == 7:
        return [Written("orders", name, _NOT_JSON, when_ms, [("trace", b"1"), ("empty", None)])]
    if n % 43 == 7:
        return [_event("orders", name, when_ms, 500 * DAY_MS, **fields)]
    if n % 47 == 7:
        return [_event("orders", name, when_ms, -2 * HOUR_MS, **fields)]
    if n % 53 == 7:
        return [_event("orders", name, when_ms, ago_ms, **fields)._replace(key="somebody else")]
    order = _event("orders", name, when_ms, ago_ms, **fields)._replace(headers=[("n", str(n).encode())])
    return [order, order._replace(timestamp_ms=when_ms + 900_000)] if n % 13 == 0 else [order]


def _event(source: str, name: str, when_ms: int, ago_ms: int, **fields: Any) -> Written:
    event = {"event_time": when_ms - ago_ms, "product_id": name} | fields
    return Written(source, name, msgspec.json.encode(event), when_ms)


def _state(source: str, name: str, when_ms: int, **fields: Any) -> Written:
    return _event(source, name, when_ms, 0, **fields)


def _calendar(name: str, when_ms: int, price: float) -> Written:
    entry = {"start_time": START_MS - DAY_MS, "end_time": START_MS + 40 * DAY_MS, "unit_price": price}
    return _state("calendar", name, when_ms, entries=[entry])


def _holiday(name: str, known_from_ms: int, start_ms: int) -> Written:
    entry = {"start_time": start_ms, "end_time": start_ms + DAY_MS, "open": False, "event_name": name}
    value = msgspec.json.encode({"event_time": known_from_ms, "entries": [entry]})
    return Written("calendar_global", name, value, known_from_ms)
