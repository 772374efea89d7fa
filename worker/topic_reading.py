"""TopicReading: what stands in a topic now, read to its end without a consumer group."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.errors import TopicError

_PATIENCE_S = 15.0  # without a word from the broker
_FIRST_WORD_S = 5.0  # a person is waiting, and nothing has been begun
_FETCHED_AT_ONCE = 1_000
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)


class StoredRecord(NamedTuple):
    """A record and where it stands."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Bounds(NamedTuple):
    """Offsets that a partition holds: from `first` up to, not including, `end`. An `end` may be told too low (the
    embedded broker tells the first offset of its last batch, plus one), never too high."""

    first: int
    end: int


class Span(NamedTuple):
    """Offsets to read: from `start` up to, not including, `stop`; None = to the end."""

    start: int
    stop: int | None = None


class TopicReading:
    """Reads topics of one broker; `config` is librdkafka's.

    Every method raises TopicError, with the remedy, when the broker does not answer or refuses.
    """

    def __init__(self, config: Mapping[str, Any], patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._config = {
            **config,
            "group.id": "shelfcast-reading",  # required by the client; nothing is joined or committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # where a span starts before what is still held
            "fetch.wait.max.ms": 10,  # the end of a partition shows in a fetch that finds nothing
        }

    def partitions(self, topic: str) -> list[int]:
        """Partition numbers; empty when there is no such topic."""
        consumer = Consumer(self._config)
        try:
            topics = consumer.list_topics(timeout=min(_FIRST_WORD_S, self._patience_s)).topics
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()
        return sorted(topics[topic].partitions) if topic in topics else []

    def bounds(self, topic: str, partitions: Iterable[int]) -> dict[int, Bounds]:
        """What each partition holds now."""
        consumer = Consumer(self._config)
        found = {}
        try:
            for p in partitions:
                found[p] = Bounds(*consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=self._patience_s))
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()
        return found

    def read(self, topic: str, spans: Mapping[int, Span]) -> Iterator[StoredRecord]:
        """Records of each partition's span, a partition's in the order of offsets. All that the broker had acknowledged
        before this was called is among them."""
        left = {p: span for p, span in spans.items() if span.stop is None or span.stop > span.start}
        if not left:
            return
        consumer = Consumer(self._config)
        consumer.assign([TopicPartition(topic, p, span.start) for p, span in left.items()])
        try:
            for partition, record in self._hear(consumer, topic):
                stop = spans[partition].stop
                if record is not None and (stop is None or record.offset < stop):
                    yield record
                if (record is None) if stop is None else (record is not None and record.offset >= stop - 1):
                    left.pop(partition, None)
                if not left:
                    return
        finally:
            consumer.close()

    def _hear(self, consumer: Any, topic: str) -> Iterator[tuple[int, StoredRecord | None]]:
        """Partition and record, None each time its end is reached. Ends only with a TopicError."""
        silent_s = 0.0
        while silent_s < self._patience_s:
            asked_s = time.monotonic()
            first = consumer.poll(1.0)
            silent_s += time.monotonic() - asked_s  # what the caller does in between does not count
            # `consume` alone would wait for all of them or for its whole time.
            for message in [first, *consumer.consume(_FETCHED_AT_ONCE, timeout=0)] if first is not None else ():
                error = message.error()
                if error is None:
                    yield message.partition(), _stored(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    yield message.partition(), None
                elif error.code() not in _PASSING:
                    raise TopicError(f"{topic} can't be read: {error.str()}")
                else:
                    continue
                silent_s = 0.0
        raise TopicError(
            f"Kafka at {self._config['bootstrap.servers']} stopped answering while {topic} was read: check that the "
            "broker runs, and run the command again"
        )

    def _away(self, error: Any) -> TopicError:
        return TopicError(
            f"Kafka at {self._config['bootstrap.servers']} does not answer ({error.args[0].str()}): check "
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS, the security settings, and that the broker runs"
        )


def _stored(message: Any) -> StoredRecord:
    return StoredRecord(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or [],
    )
