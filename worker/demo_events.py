"""The demo's events: real order lines, and clicks and reviews invented from them.

The orders are a slice of Online Retail II (see demo_data/README.md). That set has neither clicks nor reviews: both are
made up here from the orders, by a seeded generator, and are labelled as invented wherever the demo shows them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from feature_store.events import ClickEvent, OrderEvent, ReviewEvent
from feature_store.recording_merge import Merged
from worker.settings import Settings
from worker.transport import murmur2_partition

DEMO_DATA = Path(__file__).parent / "demo_data" / "online_retail_ii_march_2011.parquet"
TIME_ZONE = "Europe/London"
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000
_VIEWS_BEFORE_MS = 120 * _MINUTE_MS
_REVIEW_SHARE = 0.03
_WORDS = {
    1: "Broke on the first day.",
    2: "Smaller than I thought.",
    3: "Does what it should.",
    4: "Nice, and quickly here.",
    5: "Lovely, I will order it again.",
}


class _Record(NamedTuple):
    topic: str
    key: str
    value: bytes
    timestamp_ms: int
    reference: str


class DemoEvents(NamedTuple):
    """Everything the demo sends, in order of event time, and what it needs to score and to show."""

    rows: Merged  # as a recording would hold them
    references: list[str]  # the product of each record that is an order, empty for the others
    order_lines: int
    titles: dict[str, str]  # by product_id
    sales: dict[tuple[str, int], float]  # units by (product_id, local date ordinal)
    first_ms: int
    last_ms: int


def load_demo_events(settings: Settings, items: int, path: Path = DEMO_DATA) -> DemoEvents:
    """Read the slice, keep the `items` products with most order lines, add invented clicks and reviews."""
    from pyarrow import parquet  # noqa: PLC0415 - only the demo needs it, and it takes a while to load

    rows = parquet.read_table(path).to_pylist()
    busiest = {product for product, _ in Counter(row["product_id"] for row in rows).most_common(items)}
    rows = [row for row in rows if row["product_id"] in busiest]
    calendar = settings.shop_calendar()
    invent = random.Random(2011)  # noqa: S311 - a seeded generator, so that every run sends the same
    records: list[_Record] = []
    titles: dict[str, str] = {}
    sales: Counter[tuple[str, int]] = Counter()
    times = [int(row["event_time"].timestamp() * 1000) for row in rows]
    days = calendar.buckets("1d", np.array(times, dtype=np.int64), [""] * len(times)).tolist()
    for n, (row, event_ms, day) in enumerate(zip(rows, times, days, strict=True)):
        product_id = row["product_id"]
        titles.setdefault(product_id, row["description"])
        if row["kind"] == "sale":
            sales[product_id, day] += row["quantity"]
        order = OrderEvent(
            event_time=event_ms,
            product_id=product_id,
            quantity=row["quantity"],
            unit_price=row["unit_price"],
            event_id=f"{row['order_id']}-{n}",
            order_id=row["order_id"],
            kind=row["kind"],
        )
        records.append(_record(settings.topic_orders, order, reference=product_id))
        if row["kind"] == "sale":
            records += _invented(settings, order, invent)
    records.sort(key=lambda record: record.timestamp_ms)
    last_ms = max(times)
    records = [record for record in records if record.timestamp_ms <= last_ms]
    return DemoEvents(
        _merged(records, settings.partition_count),
        [record.reference for record in records],
        len(rows),
        titles,
        {key: float(units) for key, units in sales.items()},
        records[0].timestamp_ms,
        last_ms,
    )


def _merged(records: Sequence[_Record], partition_count: int) -> Merged:
    """Records in the order given, as producers that key by product would place them."""
    topics = tuple(sorted({record.topic for record in records}))
    partitions = [murmur2_partition(record.key, partition_count) for record in records]
    next_offsets: Counter[tuple[str, int]] = Counter()
    offsets = []
    for record, partition in zip(records, partitions, strict=True):
        offsets.append(next_offsets[record.topic, partition])
        next_offsets[record.topic, partition] += 1
    times = np.array([record.timestamp_ms for record in records], dtype=np.int64)
    return Merged(
        topics=topics,
        topic=np.array([topics.index(record.topic) for record in records], dtype=np.int16),
        partition=np.array(partitions, dtype=np.int32),
        offset=np.array(offsets, dtype=np.int64),
        due_ms=times,
        timestamps_ms=times,
        timestamp_types=np.ones(len(records), dtype=np.int8),
        keys=[record.key.encode() for record in records],
        values=[record.value for record in records],
        headers=[None] * len(records),
    )


def _record(topic: str, event: OrderEvent | ClickEvent | ReviewEvent, reference: str = "") -> _Record:
    return _Record(topic, event.product_id, msgspec.json.encode(event), event.event_time, reference)


def _invented(settings: Settings, order: OrderEvent, invent: random.Random) -> list[_Record]:
    """One to three views in the two hours before a sale, mostly a cart, and now and then a review days after."""
    out = []
    for n in range(invent.randint(1, 3)):
        seen_ms = order.event_time - invent.randint(1, _VIEWS_BEFORE_MS)
        view = ClickEvent(seen_ms, order.product_id, "view", event_id=f"{order.event_id}-view-{n}")
        out.append(_record(settings.topic_clicks, view))
    if invent.random() < 0.7:
        carted_ms = order.event_time - invent.randint(1, 5 * _MINUTE_MS)
        cart = ClickEvent(carted_ms, order.product_id, "add_to_cart", event_id=f"{order.event_id}-cart")
        out.append(_record(settings.topic_clicks, cart))
    if invent.random() < _REVIEW_SHARE:
        rating = invent.choices(list(_WORDS), weights=[1, 1, 2, 5, 8])[0]
        reviewed_ms = order.event_time + invent.randint(2 * _DAY_MS, 9 * _DAY_MS)
        review = ReviewEvent(reviewed_ms, order.product_id, rating, f"{order.event_id}-review", _WORDS[rating])
        out.append(_record(settings.topic_reviews, review))
    return out
