"""Replayer: sends a recording's records to where they stood, under their own timestamps, and the ticks of the clock.

A record keeps its partition, key, value, headers and timestamp; its offset counts anew from 0. Since the topics are
empty at the start, and sending is idempotent, every offset is known beforehand: a tick names its records as soon as
they are on their way. That each partition's last record of a call stands where it was expected is checked as Kafka
acknowledges it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from feature_store.recording_files import Merged
from worker.errors import TopicError
from worker.schemas import ClockTick

_PRODUCER = {
    "enable.idempotence": True,
    "linger.ms": 20,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 262_144,
    "message.max.bytes": 100_000_000,  # the topic's own limit decides
    "message.timeout.ms": 120_000,
}
_SERVE_EVERY = 5_000  # records between two looks at what Kafka has acknowledged
_FULL_S = 0.05  # how long to wait for room in librdkafka's queue at most
_EARLIEST_MS = 1  # librdkafka takes 0 for "now"


class TickedTopics(NamedTuple):
    """What ticks tell of: the clock topic, topics that lanes read, whose partitions number `partition_count` as the
    clock's do, and topics of which every lane reads the one partition."""

    clock: str
    partition_count: int
    keyed: Sequence[str]
    shared: Sequence[str] = ()


class Standing(NamedTuple):
    """What a replay that was broken off has left in a partition: how many records, and the last of them."""

    records: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Replayer:
    """`config` is librdkafka's. All methods but `flush` return before Kafka has acknowledged what they sent, and raise
    TopicError for what could not be sent earlier."""

    def __init__(
        self,
        config: Mapping[str, Any],
        ticked: TickedTopics | None = None,
        *,
        standing: Mapping[tuple[str, int], Standing] | None = None,
    ) -> None:
        """
        Args:
            config: of the broker, as librdkafka takes it.
            ticked: None = no clock.
            standing: by topic and partition what stands there already and is not sent again.
        """
        self._producer = Producer({**config, **_PRODUCER})
        self._ticked = ticked
        self._standing = dict(standing or {})
        self._next_offsets: dict[tuple[str, int], int] = {}
        self._arrived: Counter[str] = Counter()  # by topic, since the last tick
        self._failure: str | None = None
        self.sent = self.ticks = 0

    def next_offset(self, topic: str, partition: int) -> int:
        """The offset that the next record of a partition will have."""
        return self._next_offsets.get((topic, partition), 0)

    def send(self, rows: Merged, names: Sequence[str] | None = None) -> None:
        """Send records, in their order. `names`: what each of `rows.topics` is called there; None = the same."""
        names = names or rows.topics
        groups, last = _groups(rows)
        counts = np.bincount(groups, minlength=1)
        by_topic = np.bincount(rows.topic, minlength=len(names)).tolist()
        self._arrived.update(dict(zip(names, by_topic, strict=True)))
        expected: dict[int, tuple[str, int, int]] = {}
        keep = None
        for row in last.tolist():
            topic, partition = names[int(rows.topic[row])], int(rows.partition[row])
            first = self.next_offset(topic, partition)
            after = first + int(counts[groups[row]])
            self._next_offsets[topic, partition] = after
            expected[row] = (topic, partition, after - 1)
            if (topic, partition) in self._standing:
                keep = np.ones(len(groups), dtype=np.bool_) if keep is None else keep
                own = np.flatnonzero(groups == groups[row])
                keep[own[: self._already(rows, own, (topic, partition), first)]] = False
        if keep is None:
            self._produce(rows, names, expected, range(len(groups)))
        else:
            self._produce(rows, names, expected, np.flatnonzero(keep).tolist())

    def _already(self, rows: Merged, own: NDArray[np.intp], where: tuple[str, int], first: int) -> int:
        """How many of a partition's rows, which begin at offset `first`, stand there already.

        Raises:
            TopicError: the last record there is not the one that this replay sends at its place.
        """
        standing = self._standing[where]
        if standing.records > first + len(own):
            return len(own)
        del self._standing[where]
        if standing.records > first:
            row = int(own[standing.records - first - 1])
            found = (max(int(rows.timestamps_ms[row]), _EARLIEST_MS), rows.keys[row], rows.values[row])
            _check_same(where, standing, found)
        return max(standing.records - first, 0)

    def _produce(
        self, rows: Merged, names: Sequence[str], expected: Mapping[int, tuple[str, int, int]], wanted: Sequence[int]
    ) -> None:
        topics, partitions = [names[topic] for topic in rows.topic.tolist()], rows.partition.tolist()
        timestamps = np.maximum(rows.timestamps_ms, _EARLIEST_MS).tolist()
        keys, values, headers = rows.keys, rows.values, rows.headers
        checks = {row: self._check(*place) for row, place in expected.items()}
        produce = self._producer.produce
        for n, i in enumerate(wanted, start=1):
            # By place and not by name, which takes a third longer: topic, value, key, partition, two names for the
            # callback, timestamp, headers.
            record = topics[i], values[i], keys[i], partitions[i], None, checks.get(i), timestamps[i]
            while True:
                try:
                    if headers[i] is None:
                        produce(*record)
                    else:
                        produce(*record, headers[i])
                    break
                except BufferError:
                    self._serve(_FULL_S)
            if n % _SERVE_EVERY == 0:
                self._serve(0)
        self.sent += len(wanted)
        self._serve(0)

    def tick(self, event_time_ms: int) -> None:
        """Move the clock of every partition to `event_time_ms`: all that was sent so far is due."""
        if self._ticked is None:
            return
        clock, count, keyed, shared = self._ticked
        everywhere = {topic: self.next_offset(topic, 0) for topic in shared}
        arrived = {topic: self._arrived[topic] for topic in keyed if self._arrived[topic]}
        self._arrived.clear()
        for partition in range(count):
            own = everywhere | {topic: self.next_offset(topic, partition) for topic in keyed}
            tick = ClockTick(event_time_ms, {topic: offset for topic, offset in sorted(own.items()) if offset}, arrived)
            self._send_tick(clock, partition, event_time_ms, msgspec.json.encode(tick))
        self.ticks += 1
        self._serve(0)

    def _send_tick(self, clock: str, partition: int, event_time_ms: int, value: bytes) -> None:
        offset = self.next_offset(clock, partition)
        self._next_offsets[clock, partition] = offset + 1
        standing = self._standing.get((clock, partition))
        if standing is not None and offset < standing.records:
            if offset == standing.records - 1:
                _check_same((clock, partition), standing, (event_time_ms, None, value))
            return
        delivered = self._check(clock, partition, offset)
        while True:
            try:
                self._producer.produce(
                    clock, value, partition=partition, timestamp=event_time_ms, on_delivery=delivered
                )
                return
            except BufferError:
                self._serve(_FULL_S)

    def flush(self) -> None:
        """Wait until Kafka has acknowledged everything."""
        while len(self._producer):
            self._serve(0.1)
        self._serve(0)

    def _check(self, topic: str, partition: int, expected: int) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failure = f"Kafka did not take a record of {topic} partition {partition}: {error.str()}"
            elif message.offset() != expected:
                self._failure = (
                    f"a record of {topic} partition {partition} came to stand at offset {message.offset()} instead of "
                    f"{expected}: a record before it was refused, or somebody else writes there. Replay under another "
                    "--prefix"
                )

        return delivered

    def _serve(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)
        if self._failure is not None:
            self._producer.purge()
            raise TopicError(self._failure)


def _groups(rows: Merged) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """A number for each record's topic and partition, and the last record of each of them."""
    width = int(rows.partition.max(initial=0)) + 1
    numbers = rows.topic.astype(np.int64) * width + rows.partition
    _, first_from_behind, groups = np.unique(numbers[::-1], return_index=True, return_inverse=True)
    return groups[::-1], np.sort(len(numbers) - 1 - first_from_behind)


def _check_same(where: tuple[str, int], standing: Standing, record: tuple[int, bytes | None, bytes | None]) -> None:
    if record != (standing.timestamp_ms, standing.key, standing.value):
        raise TopicError(
            f"{where[0]} partition {where[1]} holds at offset {standing.records - 1} another record than this replay "
            "sends there: it was begun from another recording or with other options. Replay under another --prefix"
        )
