"""A shop for end-to-end tests: topics and namespace of its own on the session's servers, and a worker process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from feature_store.layout import ForecastSummary
from feature_store.store import FeatureStore
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.schemas import Forecast
from worker.settings import Settings, load_settings
from worker.topics import kafka_client_config
from worker.transport import murmur2_partition

PATIENCE_S = 60.0  # long enough for a machine that is slow at times; nothing waits for it when all is well
_numbers = itertools.count()


class Received(NamedTuple):
    """A record as a consumer sees it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class TopicReader:
    """Reads a topic from its start, waiting for what a test expects of it."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        config = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"reader-{topic}",
            "log_level": 2,
            "fetch.wait.max.ms": 10,
        }
        self._consumer = Consumer(config)
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
        self.records: list[Received] = []

    def wait_for(self, wanted: Callable[[list[Received]], Any]) -> Any:
        """Read until `wanted(all records so far)` is true, and return what it returned."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := wanted(self.records)):
            assert time.monotonic() < deadline, (
                f"still waiting; last keys of {len(self.records)}: {[r.key for r in self.records[-9:]]}"
            )
            message = self._consumer.poll(0.05)
            if message is not None and message.error() is None:
                self.records.append(_received(message))
        return found

    def close(self) -> None:
        self._consumer.close()


def _received(message: Message) -> Received:
    headers: dict[str, Any] = dict(message.headers() or [])
    return Received(message.partition() or 0, message.offset() or 0, message.key(), message.value(), headers)


class Shop:
    """Settings, producers and readers of one test's topics; `start_worker` as often as a test likes."""

    def __init__(self, stack: LocalStack, directory: Path, **settings: Any) -> None:
        self.directory = directory
        n = next(_numbers)
        topics = ("orders", "clicks", "reviews", "products", "calendar", "calendar_global", "stock", "clock")
        self.environment: dict[str, str] = {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap_servers,
            "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "6",
            "SHELFCAST_KAFKA_FETCH_MAX_WAIT_MS": "10",
            "SHELFCAST_REDIS_URL": stack.redis_url,
            "SHELFCAST_TRITON_URL": stack.triton_url,
            "SHELFCAST_NAMESPACE": f"test{n}",
            "SHELFCAST_PARTITION_COUNT": "2",
            "SHELFCAST_CURRENCY": "GBP",
            "SHELFCAST_TIME_ZONE": "Europe/London",
            **{f"SHELFCAST_TOPIC_{topic.upper()}": f"shop{n}.{topic}.v1" for topic in topics},
            **{f"SHELFCAST_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.settings: Settings = load_settings(self.environment)
        self._producers: dict[str, Producer] = {}
        self._readers: dict[str, TopicReader] = {}
        self._workers: list[LocalWorker] = []

    def start_worker(self, **settings: Any) -> LocalWorker:
        """Start one more worker process and wait until it is ready."""
        worker = self.new_worker(**settings)
        worker.start(PATIENCE_S)
        return worker

    def new_worker(self, **settings: Any) -> LocalWorker:
        """A worker process that is not started yet."""
        more = {f"SHELFCAST_{name.upper()}": str(value) for name, value in settings.items()}
        worker = LocalWorker(self.directory, self.environment | more, name=f"worker-{len(self._workers)}")
        self._workers.append(worker)
        return worker

    def send(
        self,
        source: str,
        value: Mapping[str, Any] | bytes | None,
        *,
        key: str | None = None,
        partition: int | None = None,
        partitioner: str = "murmur2",
        timestamp_ms: int | None = None,
    ) -> None:
        """Send one record and wait until Kafka has it. Keyed by the value's product_id unless told otherwise."""
        if partitioner not in self._producers:
            config = kafka_client_config(self.settings) | {"partitioner": partitioner}
            self._producers[partitioner] = Producer(config)
        producer = self._producers[partitioner]
        raw = msgspec.json.encode(value) if isinstance(value, Mapping) else value
        if key is None:
            key = str(value.get("product_id", "")) if isinstance(value, Mapping) else ""
        options: dict[str, Any] = {} if partition is None else {"partition": partition}
        if timestamp_ms is not None:
            options["timestamp"] = timestamp_ms
        producer.produce(getattr(self.settings, f"topic_{source}"), raw, key.encode(), **options)
        assert producer.flush(PATIENCE_S) == 0

    def order(self, product_id: str, quantity: float = 1, **fields: Any) -> dict[str, Any]:
        """Send an order of now, and return it."""
        order = {"event_time": now_ms(), "product_id": product_id, "quantity": quantity, "unit_price": 2.5} | fields
        self.send("orders", order)
        return order

    def reader(self, topic: str) -> TopicReader:
        """The test's reader of a topic."""
        if topic not in self._readers:
            count = self.settings.partition_count
            self._readers[topic] = TopicReader(self.settings.kafka_bootstrap_servers, topic, count)
        return self._readers[topic]

    def forecast(self, item_id: str, freq: str, accept: Callable[[Forecast], bool] = lambda _: True) -> Forecast:
        """Wait for a forecast of the item that `accept` takes."""

        def find(records: list[Received]) -> Forecast | None:
            for record in reversed(records):
                if record.key == f"{item_id}|{freq}".encode() and record.value is not None:
                    forecast = msgspec.json.decode(record.value, type=Forecast)
                    if accept(forecast):
                        return forecast
            return None

        found: Forecast = self.reader(self.settings.topic_forecasts).wait_for(find)
        return found

    def wait_for_positions(self, source: str, events: int) -> dict[int, int]:
        """Wait until that many records of a source are in the features; returns the position of each partition."""
        topic, count = getattr(self.settings, f"topic_{source}"), self.settings.partition_count

        async def positions() -> dict[int, int]:
            store = self.store()
            found = {p: (await store.peek_positions(p)).get(topic, 0) for p in range(count)}
            await store.close()
            return found

        deadline = time.monotonic() + PATIENCE_S
        while sum((found := asyncio.run(positions())).values()) < events:
            assert time.monotonic() < deadline, f"only {found} of {events} records of {source} are in the features"
            time.sleep(0.05)
        return found

    def wait_for_summary(self, product_id: str, freq: str) -> ForecastSummary:
        """Wait until the last forecast of an item stands in Redis."""

        async def summary() -> ForecastSummary | None:
            store = self.store()
            found = await store.look_up(murmur2_partition(product_id, self.settings.partition_count), product_id, "")
            await store.close()
            return found.forecasts[freq] if found else None

        deadline = time.monotonic() + PATIENCE_S
        while (found := asyncio.run(summary())) is None:
            assert time.monotonic() < deadline, f"no {freq} forecast of {product_id} is stored"
            time.sleep(0.05)
        return found

    def store(self) -> FeatureStore:
        """A store on this shop's Redis."""
        return FeatureStore(**self.settings.store_options())

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        for reader in self._readers.values():
            reader.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000
