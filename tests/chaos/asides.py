"""Asides: reads what a worker sends (dead letters, late events, forecasts) to where each topic ends at that moment."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

_MARK = "chaos.mark"
_PATIENCE_S = 120.0


class Aside(NamedTuple):
    """A record that a worker has sent."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Asides:
    """`read()` returns what came since the last call. To know that a partition was read to its end, which not every
    broker tells rightly, it writes a mark of its own there and reads up to it."""

    def __init__(self, config: Mapping[str, Any], topics: Sequence[str], partitions: int) -> None:
        self._places = [(topic, p) for topic in topics for p in range(partitions)]
        self._producer = Producer(dict(config))
        options = {"group.id": "chaos-asides", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
        self._consumer = Consumer({**config, **options})
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic, p in self._places])

    def read(self) -> list[Aside]:
        """All records up to now, in order by partition."""
        mark = secrets.token_bytes(8)
        for topic, partition in self._places:
            self._producer.produce(topic, mark, None, partition=partition, headers=[(_MARK, mark)])
        assert self._producer.flush(_PATIENCE_S) == 0, "the broker did not take the marks"
        awaited, found = set(self._places), []
        deadline = time.monotonic() + _PATIENCE_S
        while awaited:
            assert time.monotonic() < deadline, f"the ends of {sorted(awaited)} were not reached"
            messages = self._consumer.consume(1000, timeout=0.2)
            if messages:  # a long way to the end is no failure; standing still is
                deadline = time.monotonic() + _PATIENCE_S
            for message in messages:
                assert message.error() is None, message.error()
                aside = _aside(message)
                if aside.headers.get(_MARK) == mark:
                    awaited.discard((aside.topic, aside.partition))
                elif _MARK not in aside.headers:
                    found.append(aside)
        return found

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def _aside(message: Message) -> Aside:
    headers: dict[str, Any] = dict(message.headers() or [])
    return Aside(str(message.topic()), message.partition() or 0, message.key(), message.value(), headers)
