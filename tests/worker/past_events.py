"""A shop's events for tests of tables and topics, and what they amount to: with datetime, Decimal and dicts."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.features import FEATURES
from feature_store.store import FeatureStore
from worker.settings import Settings
from worker.transport import murmur2_partition

Event = dict[str, Any]
Cells = Counter[tuple[str, str, str, int, str]]  # product, location, freq, bucket, feature

ZONE = "Europe/London"
_EPOCH = dt.date(1970, 1, 1).toordinal()
_LOCATIONS = ("", "york")


def make_events(seed: int, first_ms: int, last_ms: int, count: int, products: int = 9) -> dict[str, list[Event]]:
    """By source, in the order of their times; every event has an event_id of its own."""
    random_ = random.Random(seed)
    times = sorted(random_.randrange(first_ms, last_ms) for _ in range(count))
    out: dict[str, list[Event]] = {"orders": [], "clicks": [], "reviews": []}
    for n, time_ms in enumerate(times):
        source = random_.choice(["orders", "orders", "clicks", "reviews"])
        event: Event = {"event_time": time_ms, "product_id": f"0{random_.randrange(products)}", "event_id": f"e{n}"}
        if source == "orders":
            event |= {"quantity": random_.choice([1, 2, 7.25]), "unit_price": random_.choice([0.5, 12.99])}
            event |= {"location_id": random_.choice(_LOCATIONS), "kind": random_.choice(["sale", "sale", "return"])}
        elif source == "clicks":
            event |= {"action": random_.choice(["view", "add_to_cart"])}
        else:
            event |= {"rating": random_.randint(1, 5)}
        out[source].append(event)
    return out


def expected_cells(events: dict[str, list[Event]]) -> Cells:
    """Each event counted once."""
    cells: Cells = Counter()
    for event in (event for some in events.values() for event in some):
        seconds = event["event_time"] // 1000
        day = dt.datetime.fromtimestamp(seconds, ZoneInfo(ZONE)).date().toordinal() - _EPOCH
        for freq, bucket in (("5m", seconds // 300), ("1h", seconds // 3600), ("1d", day)):
            for feature, amount in _amounts(event):
                cells[event["product_id"], event.get("location_id", ""), freq, bucket, feature] += amount
    return cells


def _amounts(event: Event) -> list[tuple[str, int]]:
    if "rating" in event:
        return [("review_count", 1), ("rating_sum", event["rating"])]
    if "action" in event:
        return [({"view": "views", "add_to_cart": "add_to_carts"}[event["action"]], 1)]
    quantity = Decimal(str(event["quantity"]))
    if event["kind"] == "return":
        return [("returned_units", int(quantity * 1000))]
    revenue = int(quantity * Decimal(str(event["unit_price"])) * 1_000_000)
    return [("units", int(quantity * 1000)), ("order_lines", 1), ("revenue", revenue)]


async def stored_cells(store: FeatureStore, settings: Settings, products: Iterable[str]) -> Cells:
    """What stands."""
    cells: Cells = Counter()
    for product in products:
        for location in _LOCATIONS:
            found = await store.look_up(murmur2_partition(product, settings.partition_count), product, location)
            for freq, (buckets, values) in found.sums.items() if found else ():
                for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
                    for feature, value in zip(FEATURES, row, strict=True):
                        cells[product, location, freq, bucket, feature.name] += value
    return cells


def standing(cells: Cells, settings: Settings, last_ms: int) -> dict[tuple[str, str, str, int, str], int]:
    """Cells that are not zero, of buckets that the retention still holds at the end."""
    day = dt.datetime.fromtimestamp(last_ms / 1000, ZoneInfo(ZONE)).date().toordinal() - _EPOCH
    newest = {"5m": last_ms // 300_000, "1h": last_ms // 3_600_000, "1d": day}
    return {c: v for c, v in cells.items() if v and c[3] >= newest[c[2]] - settings.retention[c[2]] + 1}


def products_of(events: dict[str, list[Event]]) -> set[str]:
    return {event["product_id"] for some in events.values() for event in some}


def write_table(path: Path, events: Sequence[Event], **columns: Sequence[Any]) -> Path:
    """A Parquet table of events, with more columns beside the fields."""
    names = list(dict.fromkeys(name for event in events for name in event))
    table = pa.table({name: [event.get(name) for event in events] for name in names} | columns)
    pq.write_table(table, path)
    return path
