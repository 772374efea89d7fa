"""TopicRecorder: reads topics in bulk and hands their records, as columns, to a thread that writes the recording.

1. librdkafka's records are taken thousands at a time and become columns by list comprehensions.
2. A second thread appends them and rolls files: compressing and syncing them needs no interpreter lock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from operator import ne
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from feature_store.recording_files import RecordColumns, RecordingError, RecordingWriter
from worker.errors import TopicError
from worker.record_span import Partition, Places, Point, Start
from worker.redaction import NotJsonError, Redaction

_MOST_AT_ONCE = 4_000  # records: what one call takes from librdkafka's queue; 20,000 leave the caches, and are slower
_QUEUED_KB = 65_536  # in librdkafka, of all partitions
_AHEAD = 8  # takings on their way to the writing thread
_POLL_S = 0.1
_TOPICS_CHECK_S = 60.0
_GRACE_MS = 5_000  # for records of a time that arrive after it
_BEHIND_LOG = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


@dataclass
class _Reading:
    """A partition being read."""

    next_offset: int
    from_ms: int | None  # records before the first of this time or later are left out
    stop: int | None  # offset at which it ends; None = none is known
    is_at_end: bool = False  # of what there is
    is_over: bool = False


class _WritingThread(threading.Thread):
    """Appends what it is given. `failure` is what it ended of, before its time."""

    def __init__(self, writer: RecordingWriter, redaction: Redaction, roll_s: float) -> None:
        super().__init__(name="recording-writer", daemon=True)
        self._writer, self._redaction, self._roll_s = writer, redaction, roll_s
        self._given: queue.Queue[list[RecordColumns] | None] = queue.Queue(_AHEAD)
        self.failure: Exception | None = None

    def give(self, columns: list[RecordColumns]) -> None:
        """Waits while much is on its way."""
        while self.is_alive():
            try:
                return self._given.put(columns, timeout=_POLL_S)
            except queue.Full:
                continue
        return None

    def finish(self) -> None:
        """Append all that was given, roll, and end. Raises what went wrong."""
        while self.is_alive():
            try:
                self._given.put(None, timeout=_POLL_S)
                break
            except queue.Full:
                continue
        self.join()
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            rolled_s = time.monotonic()
            while True:
                try:
                    columns = self._given.get(timeout=max(0.01, rolled_s + self._roll_s - time.monotonic()))
                except queue.Empty:
                    columns = []
                if columns is None:
                    self._writer.roll()
                    return
                for one in columns:
                    self._writer.append(self._redacted(one))
                if time.monotonic() >= rolled_s + self._roll_s:
                    self._writer.roll()
                    rolled_s = time.monotonic()
        except Exception as error:
            self.failure = error

    def _redacted(self, columns: RecordColumns) -> RecordColumns:
        try:
            return columns._replace(values=self._redaction(columns.values))
        except NotJsonError as error:
            raise RecordingError(
                f"{columns.topic} partition {columns.partition} offset {columns.offsets[error.row]}: the value is no "
                "JSON object, so no field can be taken out of it. --not-json keep records such values as they are, "
                "--not-json empty without their bytes"
            ) from error


class TopicRecorder:
    """Records partitions from where each starts to the end asked for; `config` is librdkafka's."""

    def __init__(
        self,
        config: Mapping[str, Any],
        writer: RecordingWriter,
        redaction: Redaction,
        *,
        roll_s: float,
        new_consumer: Callable[[Mapping[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._config, self._new_consumer = consumer_config(config), new_consumer
        self._places = Places(self._config, new_consumer=new_consumer)
        self._writer = writer
        self._thread = _WritingThread(writer, redaction, roll_s)
        self._readings: dict[Partition, _Reading] = {}
        self._end: Point | None = None
        self.records = 0  # taken so far, those not written yet included

    def run(
        self,
        starts: Mapping[Partition, Start],
        end: Point | None,
        is_stopped: Callable[[], bool],
        on_progress: Callable[[], None],
    ) -> None:
        """Record until every partition has reached the end, or `is_stopped`. What was taken by then is written.

        Raises:
            TopicError: Kafka refuses to give a topic's records, or a topic has changed its shape.
            RecordingError, OSError: the recording can't be written.
        """
        self._end = end
        stops: dict[Partition, int] = {}
        if end is not None and end.kind == "end":
            stops = self._places.ends(list(starts))
        elif end is not None and end.kind == "offset":
            stops = dict.fromkeys(starts, end.number)
        for key, start in starts.items():
            if key not in stops or start.offset < stops[key]:
                self._readings[key] = _Reading(start.offset, start.from_ms, stops.get(key))
        self._thread.start()
        try:
            self._read(is_stopped, on_progress)
        finally:
            self._thread.finish()

    def _read(self, is_stopped: Callable[[], bool], on_progress: Callable[[], None]) -> None:
        consumer = self._new_consumer(self._config)
        checked_s = time.monotonic()
        try:
            consumer.assign([TopicPartition(*key, one.next_offset) for key, one in self._readings.items()])
            while self._readings and not is_stopped() and self._thread.failure is None:
                first = consumer.poll(_POLL_S)
                if first is not None:
                    # With a time to wait, `consume` would sit it out unless it gets all it asks for.
                    self._take(consumer, [first, *consumer.consume(_MOST_AT_ONCE - 1, timeout=0)])
                else:
                    self._leave_quiet(consumer)
                on_progress()
                if time.monotonic() > checked_s + _TOPICS_CHECK_S:
                    checked_s = time.monotonic()
                    self._check_counts()
        finally:
            consumer.close()

    def _take(self, consumer: Any, messages: Sequence[Message]) -> None:
        by_partition: dict[Partition, list[Message]] = {}
        keys = list(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True))
        # A partition's messages come in long runs: only their ends are looked at one by one.
        ends = list(compress(range(1, len(keys)), map(ne, keys, islice(keys, 1, None))))
        for first, stop in pairwise([0, *ends, len(keys)]):
            by_partition.setdefault(keys[first], []).extend(messages[first:stop])
        taken = []
        for key, own in by_partition.items():
            reading = self._readings.get(key)
            if reading is None:
                continue  # it has reached its end
            records = self._without_errors(consumer, key, reading, own)
            if records:
                columns = self._cut(_columns(key, records), reading)
                if len(columns.offsets):
                    taken.append(columns)
            if reading.is_over:
                self._leave(consumer, key)
        if taken:
            self.records += sum(len(columns.offsets) for columns in taken)
            self._thread.give(taken)

    def _without_errors(self, consumer: Any, key: Partition, reading: _Reading, own: list[Message]) -> list[Message]:
        if not any(map(Message.error, own)):
            reading.is_at_end = False
            return own
        records = [message for message in own if message.error() is None]
        reading.is_at_end = bool(own[-1].error())
        for error in (message.error() for message in own if message.error() is not None):
            if error.code() == KafkaError._PARTITION_EOF:
                # Whatever stood there when this began has been read, also when its last offsets hold no record.
                reading.is_over = self._end is not None and self._end.kind == "end"
            elif error.code() in _BEHIND_LOG:
                self._read_on(consumer, key, reading)
            elif error.code() not in _PASSING:
                raise TopicError(f"{key[0]} partition {key[1]} can't be read: {error.str()}")
        return records

    def _read_on(self, consumer: Any, key: Partition, reading: _Reading) -> None:
        """After records that Kafka has deleted before they were read. The writer notes the gap."""
        low, high = self._places.bounds(key)
        if reading.next_offset > high:
            raise TopicError(
                f"{key[0]} partition {key[1]} ends at offset {high}, and is to be recorded from {reading.next_offset}: "
                "give --from an offset that it has. If the topic was created anew, record it into another folder"
            )
        consumer.incremental_unassign([TopicPartition(*key)])
        consumer.incremental_assign([TopicPartition(*key, max(low, reading.next_offset))])

    def _cut(self, columns: RecordColumns, reading: _Reading) -> RecordColumns:
        """Without records before the start and after the end; notes whether the end is reached."""
        first, stop = 0, len(columns.offsets)
        reading.next_offset = int(columns.offsets[-1]) + 1
        if reading.from_ms is not None:
            late = columns.timestamps_ms >= reading.from_ms
            first = int(late.argmax()) if late.any() else stop
            reading.from_ms = reading.from_ms if first == stop else None
        if reading.stop is not None:
            stop = int(np.searchsorted(columns.offsets, reading.stop))
            reading.is_over |= reading.next_offset >= reading.stop
        if self._end is not None and self._end.kind == "time":
            beyond = columns.timestamps_ms >= self._end.number
            stop = int(beyond.argmax()) if beyond.any() else stop
            reading.is_over |= bool(beyond.any())
        return columns.part(first, max(first, stop))

    def _leave_quiet(self, consumer: Any) -> None:
        """Partitions whose records have all been read, when the clock has passed the time to which to record."""
        if self._end is None or self._end.kind != "time" or time.time() * 1000 < self._end.number + _GRACE_MS:
            return
        for key in [key for key, reading in self._readings.items() if reading.is_at_end]:
            self._leave(consumer, key)

    def _leave(self, consumer: Any, key: Partition) -> None:
        del self._readings[key]
        consumer.incremental_unassign([TopicPartition(*key)])

    def _check_counts(self) -> None:
        topics = self._writer.manifest.topics
        for topic, count in self._places.partition_counts(list(topics)).items():
            if count != topics[topic].partition_count:
                raise TopicError(
                    f"{topic} has {count} partitions now and had {topics[topic].partition_count} when its recording "
                    "began: what was recorded is safe; record on into another folder"
                )


def consumer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the consumers used here: none joins a group, and offsets that Kafka has deleted are told, not skipped."""
    return {
        **config,
        "group.id": "shelfcast-record",  # required by the client; nothing is joined or committed
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "fetch.queue.backoff.ms": 5,  # librdkafka waits 1000 after its queue was full
        "fetch.wait.max.ms": 100,
        "queued.max.messages.kbytes": _QUEUED_KB,
    }


def _columns(key: Partition, messages: list[Message]) -> RecordColumns:
    types, times = zip(*map(Message.timestamp, messages), strict=True)
    return RecordColumns(
        *key,
        np.array(list(map(Message.offset, messages)), dtype=np.int64),
        np.array(times, dtype=np.int64),
        np.array(types, dtype=np.int8),
        list(map(Message.key, messages)),
        list(map(Message.value, messages)),
        list(map(Message.headers, messages)),
    )
