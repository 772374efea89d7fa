"""A benchmark's shop: settings of its own on a local stack, and seeded orders sent to its topic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from numpy.typing import NDArray

from worker.errors import TopicError
from worker.local_stack import LocalStack
from worker.settings import Settings
from worker.topics import kafka_client_config

_QUEUED, _FLUSH_S = 50_000, 60.0  # records on their way at once

TOPICS = ("orders", "clicks", "reviews", "products", "calendar", "calendar_global", "stock", "clock")

Cells = Counter[tuple[str, str, int, str]]  # by (product, freq, bucket, feature), in whole units and cents
Contribution = tuple[str, int, Mapping[str, int]]  # product, event time, what an event adds to which features


class Order(NamedTuple):
    """A sale. Whole units and whole cents, so that sums of it can be checked without rounding."""

    number: int
    event_ms: int
    product_id: str
    quantity: int
    cents: int
    event_id: str = ""


class Zipf(NamedTuple):
    """Products of which the n-th sells in proportion to 1/n, and a stretch of event time that orders fill evenly."""

    products: int
    first_ms: int
    last_ms: int
    seed: int

    def draw(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Product numbers and event times of events, in order of event time; the same for the same arguments."""
        weights = 1 / np.arange(1, self.products + 1)
        product = np.random.default_rng(self.seed).choice(self.products, size=count, p=weights / weights.sum())
        return product, np.linspace(self.first_ms, self.last_ms, count).astype(np.int64)


def environment(stack: LocalStack, namespace: str, topics: str = "", **settings: Any) -> dict[str, str]:
    """SHELFCAST_* variables of a worker on the stack. `topics` prefixes the input topics, the namespace by default."""
    return {
        "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap_servers,
        "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "6",
        # The embedded broker does not look for new records before this time is up.
        "SHELFCAST_KAFKA_FETCH_MAX_WAIT_MS": "10",
        "SHELFCAST_REDIS_URL": stack.redis_url,
        "SHELFCAST_TRITON_URL": stack.triton_url,
        "SHELFCAST_NAMESPACE": namespace,
        "SHELFCAST_PARTITION_COUNT": "4",
        **{f"SHELFCAST_TOPIC_{topic.upper()}": f"{topics or namespace}.{topic}.v1" for topic in TOPICS},
        **{f"SHELFCAST_{name.upper()}": str(value) for name, value in settings.items()},
    }


def product_name(number: int) -> str:
    """Product of a number."""
    return f"p{number:05d}"


def product_number(name: str) -> int:
    """Number of a product."""
    return int(name.removeprefix("p"))


def make_event_ids(count: int, seed: int) -> list[str]:
    """Identifiers of 36 characters, as UUIDs have."""
    digits = np.random.default_rng(seed).bytes(16 * count).hex()
    ids = (digits[start : start + 32] for start in range(0, 32 * count, 32))
    return [f"{i[:8]}-{i[8:12]}-{i[12:16]}-{i[16:20]}-{i[20:]}" for i in ids]


def make_orders(count: int, zipf: Zipf, event_ids: bool = False) -> list[Order]:
    """The same orders for the same arguments, in order of event time."""
    product, event_ms = zipf.draw(count)
    random = np.random.default_rng([zipf.seed, 1])
    quantity, cents = random.integers(1, 6, size=count), random.integers(50, 5000, size=count)
    ids = make_event_ids(count, zipf.seed) if event_ids else [""] * count
    columns = (event_ms.tolist(), product.tolist(), quantity.tolist(), cents.tolist(), ids)
    return [Order(n, ms, product_name(p), q, c, i) for n, (ms, p, q, c, i) in enumerate(zip(*columns, strict=True))]


def encode(order: Order) -> bytes:
    """About 100 bytes of JSON, and 50 more with an event_id."""
    message = {
        "event_time": order.event_ms,
        "product_id": order.product_id,
        "quantity": order.quantity,
        "unit_price": order.cents / 100,
        "order_id": f"o{order.number}",
    }
    return msgspec.json.encode(message | {"event_id": order.event_id} if order.event_id else message)


def contribution(order: Order) -> Contribution:
    """What the order adds to which features, money in whole cents."""
    added = {"units": order.quantity, "order_lines": 1, "revenue": order.quantity * order.cents}
    return order.product_id, order.event_ms, added


def sum_cells(contributions: Iterable[Contribution], bucket_ms: Mapping[str, int]) -> Cells:
    """The truth that stored sums are held against: event by event, with a dict. `bucket_ms` is by freq."""
    cells: Cells = Counter()
    for product_id, event_ms, added in contributions:
        for freq, length_ms in bucket_ms.items():
            bucket = event_ms // length_ms
            for feature, value in added.items():
                cells[product_id, freq, bucket, feature] += value
    return cells


def create_topics(settings: Settings, names: Iterable[str]) -> None:
    """Create keyed input topics, kept for ever. Says so in full: the embedded broker tells clients only what was set,
    and Quix Streams asks."""
    config = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    admin = AdminClient(kafka_client_config(settings))
    new = [NewTopic(name, settings.partition_count, settings.replication_factor, config=config) for name in names]
    for future in admin.create_topics(new).values():
        future.result()


def delete_topics(settings: Settings, names: Iterable[str]) -> None:
    """Give the broker's memory back."""
    admin = AdminClient(kafka_client_config(settings))
    for future in admin.delete_topics(list(names)).values():
        future.result()


def send(settings: Settings, records: Iterable[tuple[str, str, bytes]]) -> None:
    """Send (topic, key, value) of each record and wait until Kafka has them all. Records of a partition keep their
    order. Raises TopicError when Kafka does not take one."""
    failures: list[str] = []

    def undelivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    config = {"partitioner": "murmur2", "linger.ms": 20, "delivery.report.only.error": True, "on_delivery": undelivered}
    producer = Producer(kafka_client_config(settings) | config)
    for topic, key, value in records:
        producer.produce(topic, value, key.encode())
        while len(producer) > _QUEUED:
            producer.poll(0.01)
    left = producer.flush(_FLUSH_S)
    if left or failures:
        raise TopicError(f"Kafka did not take {left + len(failures)} records: {(failures or ['no answer'])[0]}")
