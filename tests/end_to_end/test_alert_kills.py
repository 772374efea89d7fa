"""Alerts of live workers that are killed around the moment in which they send one, and of two that share the lanes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from tests.chaos.doomed_worker import DoomedWorker
from tests.chaos.seams import ALERT_SENT, CrashPoint
from tests.end_to_end.order_stream import wait_until
from tests.end_to_end.shop import Shop, now_ms
from worker.local_stack import LocalStack
from worker.schemas import Alert
from worker.topics import ensure_topics, kafka_client_config
from worker.transport import murmur2_partition

_HOUR_MS = 3_600_000
_MUG, _JUG = (next(name for n in range(99) if murmur2_partition(name := f"item{n}", 2) == p) for p in range(2))
_AN_HOUR = 10  # orders of each, and clicks of each


@pytest.fixture
def shop(stack: LocalStack, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path, kafka_session_timeout_s=3, forecast_freqs="1h", silence_sources="clicks")
    ensure_topics(shop.settings)
    yield shop
    shop.close()


def send_past(shop: Shop, source: str, hours: range) -> None:
    """As every hour has been, so many hours ago."""
    producer, end_ms = Producer(kafka_client_config(shop.settings) | {"partitioner": "murmur2"}), now_ms()
    more = {"quantity": 1, "unit_price": 2} if source == "orders" else {"action": "view"}
    for ago, n in itertools.product(hours, range(_AN_HOUR)):
        for product in (_MUG, _JUG):
            time_ms = end_ms - ago * _HOUR_MS + n * _HOUR_MS // _AN_HOUR
            value = msgspec.json.encode({"event_time": time_ms, "product_id": product, **more})
            producer.produce(getattr(shop.settings, f"topic_{source}"), value, product)
        producer.poll(0)
    assert producer.flush(30) == 0


def alerts_of(shop: Shop) -> list[Alert]:
    """Those sent so far, in the order of their partitions."""
    reader, looks = shop.reader(shop.settings.topic_alerts), itertools.count()
    reader.wait_for(lambda _: next(looks) > 5)
    return [msgspec.json.decode(record.value or b"", type=Alert) for record in reader.records]


def states(shop: Shop, kind: str) -> set[str]:
    return {alert.episode_state for alert in alerts_of(shop) if alert.kind == kind}


def die(shop: Shop, moment: str) -> None:
    """Run a worker that ends itself around the sending of its first alert."""
    worker = DoomedWorker(shop.directory, shop.environment, CrashPoint(ALERT_SENT, moment, 1), seed=1)
    worker.launch()
    wait_until(lambda: not worker.is_running)


def test_every_alert_of_workers_that_are_killed_opens_and_closes_once(shop: Shop) -> None:
    # An expectation is of a forecast made in an hour before: workers come while the past is still coming in.
    send_past(shop, "orders", range(22 * 24, 3, -1))
    send_past(shop, "clicks", range(22 * 24, 4, -1))
    worker = shop.start_worker()
    send_past(shop, "orders", range(3, 1, -1))
    for product in (_MUG, _JUG):
        shop.forecast(product, "1h", lambda f: f.cutoff < now_ms() - _HOUR_MS)
    wait_until(lambda: "open" in states(shop, "stream_silent"))  # clicks: for four hours
    worker.kill()

    for _ in range(30 * _AN_HOUR):
        shop.order(_MUG)
    for moment in ("before", "after"):
        die(shop, moment)
    workers = [shop.start_worker(web_port=0) for _ in range(2)]
    wait_until(lambda: "open" in states(shop, "demand_above"))
    shop.send("clicks", {"event_time": now_ms(), "product_id": _JUG, "action": "view"})
    time.sleep(1)
    workers[0].kill()  # whichever lanes it has go over to the other one
    shop.send("products", None, key=_MUG)  # delisted: the spike is over for good
    wait_until(lambda: "close" in states(shop, "demand_above") and "close" in states(shop, "stream_silent"))

    by_id: dict[str, list[Alert]] = {}
    for alert in alerts_of(shop):
        told = by_id.setdefault(alert.alert_id, [])
        if alert not in told:  # sent again after a kill it is the very same
            told.append(alert)
    for told in by_id.values():
        assert [alert.sequence for alert in told] == list(range(1, len(told) + 1))
        assert [alert.episode_state for alert in told][:: len(told) - 1] == ["open", "close"]
    subjects = [(told[0].kind, told[0].item_id or told[0].subject) for told in by_id.values()]
    assert subjects.count(("demand_above", _MUG)) == 1
    assert subjects.count(("stream_silent", shop.settings.topic_clicks)) == 1
