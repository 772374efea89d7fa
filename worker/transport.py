"""A Faust transport that hands agents whole record batches of one partition, and starts reading where Redis says.

Faust's aiokafka consumer, with three changes. (1) `getmany` yields one message a partition and fetch, whose value is a
`RecordBatch` of raw records: Faust's cost is then per batch, not per event. (2) Offsets committed to the consumer group
are those that lanes report as applied; they serve lag monitors only. (3) After a rebalance `perform_seek` asks the
worker to claim its partitions and seeks to the positions that stand in Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
)
from aiokafka.partitioner import murmur2
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage

RETRIABLE_SEND_ERRORS = (KafkaTimeoutError, KafkaConnectionError, NotLeaderForPartitionError, RequestTimedOutError)


class KeyedMessage(Protocol):
    """A record to send."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class RawRecord(NamedTuple):
    """One record as fetched."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class RecordBatch(NamedTuple):
    """Records of one partition in offset order. `epoch` counts the partition's seeks: an older batch is stale."""

    topic: str
    partition: int
    epoch: int
    records: list[RawRecord]


@lru_cache(maxsize=200_000)
def murmur2_partition(product_id: str, partition_count: int) -> int:
    """Partition that Java's and aiokafka's default partitioner gives a key."""
    return int((murmur2(product_id.encode()) & 0x7FFFFFFF) % partition_count)


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Hands the RecordBatch to the agent untouched."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> None:
        """Batches have no key."""

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """The RecordBatch itself."""
        return message.value


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust leaves two of aiokafka's options to nobody; they are set here before the consumer starts."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Range gives one member the same partitions of all topics, which have equal counts: lanes are never split.
        # Round robin, Faust's choice for apps without tables, splits them as soon as members don't divide partitions.
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        # How long a broker may sit on a fetch without new records. Kafka answers as soon as there are some; a broker
        # that does not look again before the time is up would add it to every forecast's latency (Faust: 1500).
        consumer._fetch_max_wait_ms = self.consumer.fetch_max_wait_ms
        return consumer


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """See the module. `batch_topics`, `on_seek` and the rest are set once by the composition root."""

    batch_topics: frozenset[str] = frozenset()
    fetch_max_wait_ms: int = 500
    # Called after each rebalance with the partitions assigned; it claims them and calls `seek_to`.
    on_seek: Callable[[set[tuple[str, int]]], Awaitable[None]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epochs: dict[TP, int] = {}
        self._applied: dict[TP, int] = {}
        self._expected: dict[TP, int | None] = {}  # next offset to pass on; None = the earliest that is held
        self._overtaken: set[TP] = set()

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109 - Faust's signature
        """Yield (partition, message): for batch topics one message with all records fetched.

        aiokafka has moved past whatever it returned, so records that can't be passed on now are sought again: those of
        a fetch that a rebalance or a seek overtook.
        """
        await self._seek_again()
        epochs = dict(self._epochs)
        fetched, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        for tp, records in (fetched or {}).items():
            interrupted = not self.flow_active or self.app.consumer_generation_id != generation or self.should_stop
            active_now = active is None or tp in active or tp in self._buffered_partitions
            if tp.topic not in self.batch_topics:
                if active_now and not interrupted:
                    for record in records:
                        yield tp, self._to_message(tp, record)
            elif interrupted or not active_now or epochs.get(tp, 0) != self._epochs.get(tp, 0):
                self._overtaken.add(tp)
            elif records:
                self._expected[tp] = records[-1].offset + 1
                yield tp, self._batch_message(tp, records, generation)

    async def _seek_again(self) -> None:
        overtaken, self._overtaken = self._overtaken, set()
        for tp in overtaken & {TP(a.topic, a.partition) for a in self.assignment()}:
            if tp in self._expected:
                await self._seek_to(tp, self._expected[tp])

    def _batch_message(self, tp: TP, records: list[Any], generation: int) -> ConsumerMessage:
        last = records[-1]
        raw = [RawRecord(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records]
        batch = RecordBatch(tp.topic, tp.partition, self._epochs.get(tp, 0), raw)
        size = sum(len(r.value or b"") for r in records)
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,
            None,
            batch,
            None,
            0,
            size,
            tp,
            generation_id=generation,
        )

    async def perform_seek(self) -> None:
        """Called by Faust's recovery after every rebalance, while the flow stands still."""
        if self.on_seek is not None:
            await self.on_seek({(a.topic, a.partition) for a in self.assignment() if a.topic in self.batch_topics})

    def epoch(self, topic: str, partition: int) -> int:
        """How often the partition was sought: a batch of an older epoch is stale."""
        return self._epochs.get(TP(topic, partition), 0)

    async def seek_to(self, topic: str, partition: int, position: int | None) -> None:
        """Read from `position` on (None = from the earliest record held); batches on their way become stale."""
        tp = TP(topic, partition)
        self._epochs[tp] = self._epochs.get(tp, 0) + 1
        self._applied.pop(tp, None)
        self._expected[tp] = position
        await self._seek_to(tp, position)

    async def _seek_to(self, tp: TP, position: int | None) -> None:
        self._read_offset[tp] = position
        if position is None:
            await self._thread.seek_to_beginning(TopicPartition(tp.topic, tp.partition))
        else:
            await self._seek(tp, position)

    def applied(self, topic: str, partition: int, position: int) -> None:
        """Tell what may be committed to the group: all below `position` is in the features."""
        self._applied[TP(topic, partition)] = position

    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Commit to the group at once. False when the broker refuses, as it does for a stale generation."""
        return bool(await self._commit({TP(*tp): offset for tp, offset in offsets.items()}))

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[TP]:
        return list(self._applied)

    def _new_offset(self, tp: TP) -> int | None:
        return self._applied.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets inside a batch are no gaps; lanes report real ones."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's check counts messages, which are batches here, and would cry wolf."""


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport with the batch consumer."""

    Consumer = BatchConsumer


async def send_batch(producer: Any, topic: str, partition: int, messages: Sequence[KeyedMessage]) -> None:
    """Send records to one partition, as few batches as hold them; returns when Kafka has acknowledged all.

    `producer` is Faust's: its own way to send costs a task and a future a record.
    """
    aiokafka_producer = producer._ensure_producer()
    batch, sent = aiokafka_producer.create_batch(), []
    for message in messages:
        headers = list(message.headers)
        if batch.append(timestamp=None, key=message.key, value=message.value, headers=headers) is None:
            sent.append(await aiokafka_producer.send_batch(batch, topic, partition=partition))
            batch = aiokafka_producer.create_batch()
            batch.append(timestamp=None, key=message.key, value=message.value, headers=headers)
    sent.append(await aiokafka_producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)
