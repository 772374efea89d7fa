"""Where a recording of topics begins and where it ends, as a person says it, and as offsets of each partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from feature_store.time_text import parse_time_ms
from worker.errors import TopicError

_PATIENCE_S = 15.0
Partition = tuple[str, int]


class Point(NamedTuple):
    """`number` is an offset, or a time in milliseconds; 0 for the others."""

    kind: Literal["earliest", "now", "end", "offset", "time"]
    number: int = 0

    @classmethod
    def parse(cls, text: str, words: Sequence[str]) -> Point:
        """Of one of `words`, an offset, or an ISO time (UTC when it names no offset). Raises ValueError."""
        if text in words:
            return cls(text)  # type: ignore[arg-type]
        if text.isascii() and text.isdigit():
            return cls("offset", int(text))
        try:
            return cls("time", parse_time_ms(text))
        except ValueError as error:
            raise ValueError(f"{error}; or {', '.join(words)}, or an offset") from error


class Start(NamedTuple):
    """From where to read a partition. Records before the first with a timestamp of `from_ms` or later are left out.
    `is_exact`: recording begins at just this offset, so that what is missing from there on is a gap."""

    offset: int
    from_ms: int | None = None
    is_exact: bool = True


class Places:
    """Asks a broker where partitions begin and end; `config` is librdkafka's."""

    def __init__(
        self,
        config: Mapping[str, Any],
        patience_s: float = _PATIENCE_S,
        new_consumer: Callable[[Mapping[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._config, self._patience_s, self._new_consumer = config, patience_s, new_consumer

    def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """By topic. Raises TopicError when one does not exist, or Kafka does not answer."""
        consumer = self._new_consumer(self._config)
        try:
            found = consumer.list_topics(timeout=self._patience_s).topics
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()
        for topic in topics:
            if topic not in found or not found[topic].partitions:
                ours = ", ".join(sorted(name for name in found if not name.startswith("__"))) or "none"
                raise TopicError(
                    f"Kafka at {self._config['bootstrap.servers']} has no topic {topic}: check its name. It has {ours}"
                )
        return {topic: len(found[topic].partitions) for topic in topics}

    def starts(self, point: Point, partitions: Sequence[Partition]) -> dict[Partition, Start]:
        """Where each partition's recording begins. Raises TopicError when Kafka does not answer."""
        if point.kind == "offset":
            return {key: Start(point.number) for key in partitions}
        if point.kind == "now":
            return {key: Start(offset) for key, offset in self.ends(partitions).items()}
        consumer = self._new_consumer(self._config)
        try:
            if point.kind == "earliest":
                return {key: Start(self._bounds(consumer, key)[0]) for key in partitions}
            asked = [TopicPartition(*key, point.number) for key in partitions]
            told = consumer.offsets_for_times(asked, timeout=self._patience_s)
            # -1 = no such record yet. Some brokers tell too low an offset (the embedded one 0): `from_ms` mends that.
            return {
                (tp.topic, tp.partition): Start(
                    tp.offset if tp.offset >= 0 else self._bounds(consumer, (tp.topic, tp.partition))[1],
                    point.number,
                    is_exact=False,
                )
                for tp in told
            }
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset after the last record of each partition, now. Read from the end that the broker tells on, since a
        broker may tell one that is too low (the embedded one does)."""
        consumer = self._new_consumer(self._config)
        found: dict[Partition, int] = {}
        try:
            told = {key: self._bounds(consumer, key)[1] for key in partitions}
            consumer.assign([TopicPartition(*key, offset) for key, offset in told.items()])
            deadline_s = time.monotonic() + self._patience_s
            while len(found) < len(told):
                message = consumer.poll(1.0)
                if message is None and time.monotonic() > deadline_s:
                    raise self._away(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
                error = None if message is None else message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    key = (message.topic(), message.partition())
                    found[key] = max(told[key], message.offset())
                elif message is not None:
                    deadline_s = time.monotonic() + self._patience_s
            return found
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()

    def bounds(self, key: Partition) -> tuple[int, int]:
        """First offset that a partition holds, and its end as the broker tells it."""
        consumer = self._new_consumer(self._config)
        try:
            return self._bounds(consumer, key)
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()

    def _bounds(self, consumer: Any, key: Partition) -> tuple[int, int]:
        low, high = consumer.get_watermark_offsets(TopicPartition(*key), timeout=self._patience_s)
        return int(low), int(high)

    def _away(self, error: KafkaException) -> TopicError:
        return TopicError(
            f"Kafka at {self._config['bootstrap.servers']} does not answer ({error.args[0].str()}): check "
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS, the security settings, and that the broker runs"
        )
