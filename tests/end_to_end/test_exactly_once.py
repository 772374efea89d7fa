"""kill -9 in a replay of real orders: afterwards the features equal a recomputation that shares no code with them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from feature_store.features import FEATURES
from tests.end_to_end.shop import Shop
from worker.demo import steps_of
from worker.demo_events import load_demo_events
from worker.local_stack import LocalStack
from worker.replayer import Replayer, TickedTopics
from worker.topics import ensure_topics, kafka_client_config
from worker.transport import murmur2_partition

Cells = Counter[tuple[str, str, int, str]]  # (product, freq, bucket, feature) -> thousandths, millionths or a count

_LONDON = ZoneInfo("Europe/London")
_PRODUCTS, _DAYS, _KILLS = 60, 5, 3


@pytest.fixture
def shop(stack: LocalStack, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path, clock="event", forecast_freqs="1d")
    yield shop
    shop.close()


def _recompute(values: Iterable[bytes | None]) -> Cells:
    """Event by event, with datetime and Decimal."""
    cells: Cells = Counter()
    for value in values:
        event = json.loads(value or b"", parse_float=Decimal)
        seconds = event["event_time"] // 1000
        local = dt.datetime.fromtimestamp(seconds, _LONDON).date()
        buckets = {
            "5m": seconds // 300,
            "1h": seconds // 3600,
            "1d": local.toordinal() - dt.date(1970, 1, 1).toordinal(),
        }
        for feature, amount in _amounts(event):
            for freq, bucket in buckets.items():
                cells[event["product_id"], freq, bucket, feature] += amount
    return cells


def _amounts(event: dict[str, object]) -> list[tuple[str, int]]:
    if "rating" in event:
        return [("review_count", 1), ("rating_sum", int(str(event["rating"])))]
    if "action" in event:
        return [({"view": "views", "add_to_cart": "add_to_carts"}[str(event["action"])], 1)]
    quantity = Decimal(str(event["quantity"]))
    if event["kind"] == "cancel":
        return [("returned_units", int(quantity * 1000))]
    revenue = int(quantity * Decimal(str(event["unit_price"])) * 1_000_000)
    return [("units", int(quantity * 1000)), ("order_lines", 1), ("revenue", revenue)]


def _stored(shop: Shop, products: set[str]) -> Cells:
    async def read() -> Cells:
        store, cells = shop.store(), Cells()
        for product in products:
            partition = murmur2_partition(product, shop.settings.partition_count)
            found = await store.look_up(partition, product, "")
            for freq, (buckets, values) in found.sums.items() if found else ():
                for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
                    for feature, value in zip(FEATURES, row, strict=True):
                        cells[product, freq, bucket, feature.name] += value
        await store.close()
        return cells

    return asyncio.run(read())


def _standing(cells: Cells, shop: Shop, last_ms: int) -> dict[tuple[str, str, int, str], int]:
    """Cells that are not zero, of buckets that the retention still holds at the end."""
    day = dt.datetime.fromtimestamp(last_ms / 1000, _LONDON).date().toordinal() - dt.date(1970, 1, 1).toordinal()
    newest = {"5m": last_ms // 300_000, "1h": last_ms // 3_600_000, "1d": day}
    return {
        cell: value
        for cell, value in cells.items()
        if value and cell[2] >= newest[cell[1]] - shop.settings.retention[cell[1]] + 1
    }


def test_features_equal_a_recomputation_after_kills_at_any_moment(shop: Shop) -> None:
    events = load_demo_events(shop.settings, _PRODUCTS)
    ensure_topics(shop.settings)
    ticked = TickedTopics(shop.settings.topic_clock, shop.settings.partition_count, events.rows.topics)
    replayer = Replayer(kafka_client_config(shop.settings), ticked)
    steps = [s for s in steps_of(events, shop.settings) if s.tick_ms < events.first_ms + _DAYS * 86_400_000]
    for step in steps:
        replayer.send(events.rows.part(step.first, step.stop))
        replayer.tick(step.tick_ms)
    replayer.flush()
    sent = events.rows.part(0, steps[-1].stop)
    orders = sum(sent.topics[topic] == shop.settings.topic_orders for topic in sent.topic.tolist())

    worker = shop.start_worker()
    moments = random.Random(1)  # a seeded choice of moments: how much has been counted when the worker is killed
    for after in sorted(moments.randrange(orders) for _ in range(_KILLS)):
        shop.wait_for_positions("orders", after)
        worker.kill()
        worker.start()
    shop.wait_for_positions("orders", orders)
    shop.wait_for_positions("clock", len(steps) * shop.settings.partition_count)

    products = {(key or b"").decode() for key in sent.keys}
    expected = _standing(_recompute(sent.values), shop, steps[-1].tick_ms)
    assert _standing(_stored(shop, products), shop, steps[-1].tick_ms) == expected
    assert len(expected) > 2_000
