"""A benchmark's shop: settings of its own on a local stack, and seeded orders sent to its topic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from worker.errors import TopicError
from worker.local_stack import LocalStack
from worker.settings import Settings
from worker.topics import kafka_client_config

TOPICS = ("orders", "clicks", "reviews", "products", "calendar", "calendar_global", "stock", "clock")


class Order(NamedTuple):
    """A sale. Whole units and whole cents, so that sums of it can be checked without rounding."""

    number: int
    event_ms: int
    product_id: str
    quantity: int
    cents: int


class Zipf(NamedTuple):
    """Products of which the n-th sells in proportion to 1/n, and a stretch of event time that orders fill evenly."""

    products: int
    first_ms: int
    last_ms: int
    seed: int


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


def make_orders(count: int, zipf: Zipf) -> list[Order]:
    """The same orders for the same arguments, in order of event time."""
    random = np.random.default_rng(zipf.seed)
    weights = 1 / np.arange(1, zipf.products + 1)
    product = random.choice(zipf.products, size=count, p=weights / weights.sum())
    event_ms = np.linspace(zipf.first_ms, zipf.last_ms, count).astype(np.int64)
    quantity, cents = random.integers(1, 6, size=count), random.integers(50, 5000, size=count)
    columns = (event_ms.tolist(), product.tolist(), quantity.tolist(), cents.tolist())
    return [Order(n, ms, f"p{p:05d}", q, c) for n, (ms, p, q, c) in enumerate(zip(*columns, strict=True))]


def encode(order: Order) -> bytes:
    """About 90 bytes of JSON."""
    message = {
        "event_time": order.event_ms,
        "product_id": order.product_id,
        "quantity": order.quantity,
        "unit_price": order.cents / 100,
        "order_id": f"o{order.number}",
    }
    return json.dumps(message, separators=(",", ":")).encode()


def send_orders(settings: Settings, orders: Sequence[Order]) -> dict[int, tuple[int, int]]:
    """Send orders and wait until Kafka has them all. Returns by order number where they stand: (partition, offset)."""
    producer = Producer({**kafka_client_config(settings), "partitioner": "murmur2", "linger.ms": 20})
    placed: dict[int, tuple[int, int]] = {}

    def noting(number: int) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise TopicError(f"Kafka did not take an order: {error.str()}")
            placed[number] = (message.partition() or 0, message.offset() or 0)

        return delivered

    for order in orders:
        producer.produce(
            settings.topic_orders, encode(order), order.product_id.encode(), on_delivery=noting(order.number)
        )
        producer.poll(0)
        if len(producer) > 50_000:
            producer.poll(0.1)
    producer.flush()
    return placed
