"""Dead letters on a real broker, put there as a worker does, and what has come back to the input topic."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from worker.dlq_desk import Desk
from worker.local_stack import LocalBroker
from worker.settings import load_settings
from worker.topics import ensure_topics

PATIENCE_S = 60.0
LEASE_OVER_MS = 3_600_000  # added to the clock: whatever a killed run may have left is long over
_numbers = itertools.count()

ORDER: dict[str, Any] = {"event_time": 1_790_000_000_000, "product_id": "mug", "quantity": 2, "unit_price": 2.5}


class Arrived(NamedTuple):
    """A record in the input topic."""

    partition: int
    offset: int
    key: bytes | None
    value: Any  # decoded from JSON; None = a tombstone
    headers: list[tuple[str, bytes]]


class Shop:
    """Topics of its own, with two partitions: 'mug' belongs to partition 0, 'lid' to partition 1."""

    def __init__(self, broker: LocalBroker) -> None:
        n = next(_numbers)
        sources = ("orders", "clicks", "reviews", "products", "calendar", "calendar_global", "stock")
        self.environment = {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "SHELFCAST_PARTITION_COUNT": "2",
            "SHELFCAST_CURRENCY": "GBP",
            "SHELFCAST_TIME_ZONE": "Europe/London",
            "SHELFCAST_NAMESPACE": f"letters{n}",
            **{f"SHELFCAST_TOPIC_{source.upper()}": f"letters{n}.{source}" for source in sources},
        }
        self.settings = load_settings(self.environment)
        assert ensure_topics(self.settings) == []
        self._client = {"bootstrap.servers": broker.bootstrap_servers, "log_level": 2}
        self._producer = Producer(self._client)
        self._offsets = itertools.count()

    def topic(self, source: str = "orders") -> str:
        return str(getattr(self.settings, f"topic_{source}"))

    def put(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = b"mug",
        partition: int = 0,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> int:
        """Send one record; returns its offset."""
        offsets: list[int] = []
        self._producer.produce(
            topic, value, key, partition, headers=headers or [], on_delivery=lambda _, m: offsets.append(m.offset())
        )
        assert self._producer.flush(PATIENCE_S) == 0
        return offsets[0]

    def set_aside(
        self,
        value: Mapping[str, Any] | bytes | None,
        *,
        source: str = "orders",
        key: bytes | None = b"mug",
        partition: int = 0,
        offset: int | None = None,
        reason: str = "other_currency",
        headers: list[tuple[str, bytes]] | None = None,
    ) -> str:
        """Put a letter where a worker would put it, with the headers the README names; returns PARTITION/OFFSET."""
        topic = self.topic(source)
        offset = next(self._offsets) if offset is None else offset
        about = [("topic", topic), ("partition", str(partition)), ("offset", str(offset)), ("reason", reason)]
        named = [(f"shelfcast.{name}", text.encode()) for name, text in [*about, ("detail", f"about {offset}")]]
        raw = json.dumps(value).encode() if isinstance(value, Mapping) else value
        return f"{partition}/{self.put(f'{topic}.dlq', raw, key, partition, [*(headers or []), *named])}"

    def desk(self, source: str = "orders", later_ms: int = 0, **settings: str) -> Desk:
        """As a run of the command begun now has it, or so many milliseconds later."""
        environment = self.environment | {f"SHELFCAST_{name.upper()}": value for name, value in settings.items()}
        return Desk(load_settings(environment), source, lambda: time.time_ns() // 1_000_000 + later_ms)

    def arrived(self, source: str = "orders") -> list[Arrived]:
        """All that stands in the input topic, read up to a record that is sent after everything else."""
        topic, last = self.topic(source), b"the last one"
        left = {partition: self.put(topic, b"0", last, partition) for partition in (0, 1)}
        consumer = Consumer({**self._client, "group.id": "arrived"})
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in left])
        found, deadline = [], time.monotonic() + PATIENCE_S
        while left:
            assert time.monotonic() < deadline, f"no end of {topic} in sight"
            message = consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            partition, offset, raw = message.partition(), message.offset(), message.value()
            if message.key() != last:
                value = None if raw is None else json.loads(raw)
                found.append(Arrived(partition, offset, message.key(), value, message.headers() or []))
            if offset >= left.get(partition, offset + 1):
                del left[partition]
        consumer.close()
        return found


def unchanged(value: bytes | None) -> bytes | None:
    """Mends nothing."""
    return value
