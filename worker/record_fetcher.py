"""RecordFetcher: reads partitions from given offsets with librdkafka, in a thread of its own.

It belongs to no consumer group: which partitions to read, and from where, it is told. Whole fetches leave it as
columns. A partition of which plenty is on its way is paused until that has been taken, so memory stays bounded, and a
slow partition holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from operator import ne
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from worker.errors import TopicError
from worker.records import Records

# Of what passes by itself. While Kafka is away librdkafka tells of every try; whoever reports outages listens here.
passing_errors = logging.getLogger(f"{__name__}.passing")

Partition = tuple[str, int]

_MOST_AT_ONCE = 20_000  # records: what one call takes from librdkafka's queue
# Bytes on their way to lanes: of one partition, and of all together. One that has nothing on its way may always read:
# a replay's tick may wait for just that.
_MOST_AHEAD_EACH, _MOST_AHEAD = 16 << 20, 64 << 20
_RECORD_BYTES = 300  # what a record takes beside its value
_GATHER_S = 0.03  # between two hand-overs: what each costs further on is much the same for one record and for hundreds
_POLL_S = 0.05  # how long a command (assign, release) may have to wait on an idle topic
_WATERMARKS_S = 10.0
_BEHIND_LOG = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


class RecordBatch(NamedTuple):
    """Records of one partition. `epoch` counts the partition's seeks: a batch of an older one is stale. `size_bytes` is
    roughly what it takes in memory."""

    topic: str
    partition: int
    epoch: int
    records: Records
    size_bytes: int = 0


@dataclass
class _Reading:
    """A partition being read."""

    epoch: int
    next_offset: int | None  # None: not known before the first record, reading began at the earliest
    ahead_bytes: int = 0  # on their way
    paused: bool = False


class RecordFetcher:
    """See the module. Methods may be called from any thread; `on_batches` and `on_error` are called in its own."""

    def __init__(
        self,
        config: Mapping[str, Any],
        on_batches: Callable[[list[RecordBatch]], None],
        on_error: Callable[[Exception], None],
        new_consumer: Callable[[Mapping[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._config = {
            **config,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",  # offsets that Kafka has deleted are to be reported, not skipped
            "fetch.queue.backoff.ms": 5,  # librdkafka waits 1000 after its queue was full
            "queued.max.messages.kbytes": 16_384,
            "error_cb": lambda error: passing_errors.warning(error.str()),
        }
        self._on_batches, self._on_error, self._new_consumer = on_batches, on_error, new_consumer
        self._commands: deque[Callable[[], None]] = deque()
        self._readings: dict[Partition, _Reading] = {}
        self._lock = threading.Lock()  # guards what is on its way, which both threads change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="record-fetcher", daemon=True)

    def start(self) -> None:
        """Begin; nothing is read before it is assigned."""
        self._consumer = self._new_consumer(self._config)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the connections."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
            self._consumer.close()

    def read_from(self, topic: str, partition: int, offset: int | None, epoch: int) -> None:
        """Read a partition from an offset on (None = from the earliest held), in place of whatever was read of it."""
        self._commands.append(lambda: self._begin((topic, partition), _Reading(epoch, offset)))

    def leave_all(self) -> None:
        """Read nothing any more."""
        self._commands.append(self._leave_all)

    def taken(self, batch: RecordBatch) -> None:
        """Tell that a batch is no longer on its way."""
        with self._lock:
            reading = self._readings.get((batch.topic, batch.partition))
            if reading is None or reading.epoch != batch.epoch:
                return
            reading.ahead_bytes -= batch.size_bytes
            resume = reading.paused and reading.ahead_bytes <= self._limit() // 2
        if resume:
            self._commands.append(lambda: self._resume((batch.topic, batch.partition), batch.epoch))

    def _limit(self) -> int:
        """Most bytes of a partition on their way, as things are now."""
        total = sum(reading.ahead_bytes for reading in self._readings.values())
        return _MOST_AHEAD_EACH if total <= _MOST_AHEAD else _MOST_AHEAD // len(self._readings)

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        passed_on_s = 0.0
        try:
            while not self._stopping.is_set():
                while self._commands:
                    self._commands.popleft()()
                first = self._consumer.poll(_POLL_S)
                if first is not None:
                    # `consume` sits its timeout out unless it gets all it asks for, which is what gathers records here.
                    gather_s = max(passed_on_s + _GATHER_S - time.monotonic(), 0)
                    messages = [first, *self._consumer.consume(_MOST_AT_ONCE - 1, timeout=gather_s)]
                    passed_on_s = time.monotonic()
                    self._pass_on(messages)
        except Exception as error:
            self._on_error(error)

    def _begin(self, key: Partition, reading: _Reading) -> None:
        topic, partition = key
        if key in self._readings:
            self._consumer.incremental_unassign([TopicPartition(topic, partition)])
        with self._lock:
            self._readings[key] = reading
        offset = OFFSET_BEGINNING if reading.next_offset is None else reading.next_offset
        self._consumer.incremental_assign([TopicPartition(topic, partition, offset)])
        self._consumer.resume([TopicPartition(topic, partition)])  # to librdkafka it is paused still if it ever was

    def _leave_all(self) -> None:
        with self._lock:
            self._readings.clear()
        self._consumer.unassign()

    def _resume(self, key: Partition, epoch: int) -> None:
        reading = self._readings.get(key)
        if reading is not None and reading.epoch == epoch and reading.paused:
            reading.paused = False
            self._consumer.resume([TopicPartition(*key)])

    def _pass_on(self, messages: Sequence[Message]) -> None:
        by_partition: dict[Partition, list[Message]] = {}
        keys = list(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True))
        # A partition's messages come in long runs: only their ends are looked at one by one.
        ends = list(compress(range(1, len(keys)), map(ne, keys, islice(keys, 1, None))))
        for first, stop in pairwise([0, *ends, len(keys)]):
            by_partition.setdefault(keys[first], []).extend(messages[first:stop])
        batches = [batch for key, own in by_partition.items() if (batch := self._batch(key, own)) is not None]
        if batches:
            self._on_batches(batches)

    def _batch(self, key: Partition, messages: list[Message]) -> RecordBatch | None:
        reading = self._readings.get(key)
        if reading is None:
            return None
        if any(map(Message.error, messages)):
            errors = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
            for message in errors:
                self._judge(key, reading, message.error())
            if not messages:
                return None
        offsets = list(map(Message.offset, messages))
        start = offsets[0] if reading.next_offset is None else reading.next_offset
        log_start = start if offsets[0] <= start else self._log_start(key)
        columns = list(map(Message.key, messages)), list(map(Message.value, messages))
        size_bytes = sum(map(len, filter(None, columns[1]))) + _RECORD_BYTES * len(messages)
        reading.next_offset = offsets[-1] + 1
        with self._lock:
            reading.ahead_bytes += size_bytes
            pause = not reading.paused and reading.ahead_bytes > self._limit()
        if pause:
            reading.paused = True
            self._consumer.pause([TopicPartition(*key)])
        records = Records(key[0], start, log_start, offsets, *columns, messages)
        return RecordBatch(*key, reading.epoch, records, size_bytes)

    def _log_start(self, key: Partition) -> int:
        return self._watermarks(key)[0]

    def _watermarks(self, key: Partition) -> tuple[int, int]:
        """Earliest offset held, and the end of the log."""
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=_WATERMARKS_S)
        return int(low), int(high)

    def _judge(self, key: Partition, reading: _Reading, error: KafkaError) -> None:
        """An error that came in a record's place.

        Raises:
            TopicError: the partition's log is not the one whose position is stored.
            KafkaException: anything that does not pass by itself.
        """
        if error.code() in _PASSING:
            passing_errors.warning(error.str())
        elif error.code() not in _BEHIND_LOG:
            raise KafkaException(error)
        else:
            low, high = self._watermarks(key)
            if reading.next_offset is not None and reading.next_offset > high:
                topic, partition = key
                raise TopicError(
                    f"{topic} partition {partition} ends at offset {high}, but the features hold its events up to "
                    f"{reading.next_offset}: the topic was created anew. Choose another namespace to count it from its "
                    "start, or bring the old topic back."
                )
            # The position stays what it was: the batch that begins at `low` says what is missing before it.
            self._consumer.incremental_unassign([TopicPartition(*key)])
            self._consumer.incremental_assign([TopicPartition(*key, low)])
