"""Replayer: sends records with their own timestamps, and the clock ticks that say which of them are due.

A tick on partition `p` names, by topic, the offset below which every record of `p` happened before the tick's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from worker.errors import TopicError
from worker.schemas import ClockTick


class ReplayRecord(NamedTuple):
    """A record to send. `reference` comes back with its partition and offset in `Replayer.placed`."""

    topic: str
    key: str
    value: bytes
    timestamp_ms: int
    reference: str = ""


class Placed(NamedTuple):
    """Where a record with a reference came to stand."""

    reference: str
    partition: int
    offset: int


class Replayer:
    """Keyed by product with murmur2, as the worker's lanes need it."""

    def __init__(self, config: dict[str, Any], clock_topic: str, partition_count: int) -> None:
        self._producer = Producer({**config, "partitioner": "murmur2", "linger.ms": 5, "enable.idempotence": False})
        self._clock_topic = clock_topic
        self._next_offsets: list[dict[str, int]] = [{} for _ in range(partition_count)]
        self._placed: list[Placed] = []
        self._failure: KafkaError | None = None

    def send(self, records: Sequence[ReplayRecord]) -> list[Placed]:
        """Send records and return, once Kafka has them all, where those with a reference stand."""
        for record in records:
            self._producer.produce(
                record.topic,
                key=record.key.encode(),
                value=record.value,
                timestamp=record.timestamp_ms,
                on_delivery=self._note(record.topic, record.reference),
            )
            self._producer.poll(0)
        self._flush()
        placed, self._placed = self._placed, []
        return placed

    def tick(self, event_time_ms: int) -> None:
        """Move the clock of every partition to `event_time_ms`: all that was sent so far is due."""
        for partition, next_offsets in enumerate(self._next_offsets):
            tick = ClockTick(event_time_ms, dict(next_offsets))
            self._producer.produce(
                self._clock_topic,
                value=msgspec.json.encode(tick),
                partition=partition,
                timestamp=event_time_ms,
                on_delivery=self._check,
            )
        self._flush()

    def _note(self, topic: str, reference: str) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failure = error
                return
            partition, offset = message.partition() or 0, message.offset() or 0
            next_offsets = self._next_offsets[partition]
            next_offsets[topic] = max(next_offsets.get(topic, 0), offset + 1)
            if reference:
                self._placed.append(Placed(reference, partition, offset))

        return delivered

    def _check(self, error: KafkaError | None, message: Message) -> None:
        self._failure = error or self._failure

    def _flush(self) -> None:
        self._producer.flush()
        if self._failure is not None:
            raise TopicError(f"Kafka did not take a replayed record: {self._failure.str()}")
