"""A Faust transport that hands agents whole record batches of one partition, read from where Redis says.

Faust and aiokafka keep what they are good at: the consumer group, its rebalances and commits, producing, and reading
all topics that are not batch topics. Batch topics are read by `RecordFetcher` (librdkafka), partition by partition as
the group assigns them:

1. After a rebalance `perform_seek` has the worker claim its partitions and tell from which stored positions to read on.
2. Each fetch becomes one message a partition, whose value is a `RecordBatch`: Faust's cost is per batch, not per event.
3. Offsets committed to the group are those that lanes report as applied; they serve lag monitors only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import faust
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
from mode import Service

from worker.record_fetcher import RecordBatch, RecordFetcher
from worker.settings import Settings

RETRIABLE_SEND_ERRORS = (KafkaTimeoutError, KafkaConnectionError, NotLeaderForPartitionError, RequestTimedOutError)


class KeyedMessage(Protocol):
    """A record to send."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


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
    """aiokafka's part: membership of the group, and the topics that are read record by record."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Range gives one member the same partitions of all topics, which have equal counts: lanes are never split.
        # Round robin, Faust's choice for apps without tables, splits them as soon as members don't divide partitions.
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        return consumer

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Called by aiokafka before it fetches: batch topics are not its to read."""
        batched = [tp for tp in self._ensure_consumer().assignment() if tp.topic in self.consumer.batch_topics]
        self._ensure_consumer().pause(*batched)
        await super().on_partitions_assigned(assigned, generation_id)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """False also when a rebalance has taken all of the partitions: aiokafka would take that for a mistake."""
        if not self.assignment() & offsets.keys():
            return False
        return bool(await super()._commit(offsets))


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """See the module. The class attributes are set once, before it starts, by the composition root."""

    batch_topics: frozenset[str] = frozenset()
    fetcher_config: Mapping[str, Any] = {}  # librdkafka's, to reach the broker
    # Called after each rebalance with the partitions assigned; it claims them and calls `seek_to`.
    on_seek: Callable[[set[tuple[str, int]]], Awaitable[None]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epochs: dict[tuple[str, int], int] = {}
        self._applied: dict[TP, int] = {}
        self._fetched: deque[RecordBatch] = deque()
        self._has_fetched = asyncio.Event()
        self._fetcher: RecordFetcher | None = None
        self._seeking = asyncio.Lock()
        self._to_seek = False  # an assignment whose partitions have not been claimed yet

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_start(self) -> None:
        """Start the fetcher with the consumer."""
        await super().on_start()
        loop = asyncio.get_running_loop()
        self._fetcher = RecordFetcher(
            self.fetcher_config,
            on_batches=lambda batches: _soon(loop, self._arrive, batches),
            on_error=lambda error: _soon(loop, self._crash_soon, error),
        )
        self._fetcher.start()

    async def on_stop(self) -> None:
        """End the fetcher first: nothing new is to arrive while lanes drain."""
        if self._fetcher is not None:
            await asyncio.to_thread(self._fetcher.stop)
        await super().on_stop()

    def _arrive(self, batches: Sequence[RecordBatch]) -> None:
        self._fetched.extend(batches)
        self._has_fetched.set()

    def _crash_soon(self, error: Exception) -> None:
        self.add_future(self.app.crash(error))

    # -- reading ----------------------------------------------------------------------------------------------------

    @Service.task  # type: ignore[untyped-decorator]
    async def _deliver(self) -> None:
        """Pass fetched batches on to their agents. One that a rebalance or a seek has overtaken is dropped: its
        partition is read again from the stored position."""
        while not self.should_stop:
            if not self._fetched:
                self._has_fetched.clear()
                await self.wait_first(self._has_fetched.wait())
                continue
            if not self.flow_active:
                await self.wait_first(self.can_resume_flow.wait())
                continue
            batch = self._fetched.popleft()
            if batch.epoch == self.epoch(batch.topic, batch.partition):
                await self.callback(self._message(batch))

    def _message(self, batch: RecordBatch) -> ConsumerMessage:
        tp, records = TP(batch.topic, batch.partition), batch.records
        last = len(records) - 1
        return ConsumerMessage(
            *tp,
            records.offsets[last],
            records.timestamp_ms(last) / 1000.0,
            records.messages[last].timestamp()[0],
            None,
            None,
            batch,
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, Any]:  # noqa: ASYNC109
        """What Faust itself reads. Asked for even when it has no partition: aiokafka leaves a group whose consumer
        does not ask."""
        others = {tp for tp in active_partitions or () if tp.topic not in self.batch_topics}
        fetched = await super()._getmany(others, timeout)
        return {tp: records for tp, records in fetched.items() if tp in others}

    # -- positions --------------------------------------------------------------------------------------------------

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Called by aiokafka's thread at the end of each rebalance."""
        self._to_seek = True
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Called by aiokafka's thread at the beginning of each rebalance: nothing is read until it has ended."""
        if self._fetcher is not None:
            self._fetcher.leave_all()
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Called by Faust's recovery after every rebalance, while the flow stands still; and by `getmany` when it has
        fetched something then, which concerns the topics that Faust reads itself."""
        async with self._seeking:
            assigned = {(a.topic, a.partition) for a in self.assignment()}
            if self._to_seek and self.on_seek is not None and self._fetcher is not None:
                self._fetcher.leave_all()
                await self.on_seek({tp for tp in assigned if tp[0] in self.batch_topics})
                self._to_seek = False
            if any(topic not in self.batch_topics for topic, _ in assigned):
                await super().perform_seek()

    def epoch(self, topic: str, partition: int) -> int:
        """How often the partition was sought: a batch of an older epoch is stale."""
        return self._epochs.get((topic, partition), 0)

    async def seek_to(self, topic: str, partition: int, position: int | None) -> None:
        """Read from `position` on (None = from the earliest record held); batches on their way become stale."""
        epoch = self._epochs[topic, partition] = self.epoch(topic, partition) + 1
        self._applied.pop(TP(topic, partition), None)
        if self._fetcher is not None:
            self._fetcher.read_from(topic, partition, position, epoch)

    def taken(self, batch: RecordBatch) -> None:
        """Tell that a lane has dealt with a batch: more of its partition may be fetched."""
        if self._fetcher is not None:
            self._fetcher.taken(batch)

    def applied(self, topic: str, partition: int, position: int) -> None:
        """Tell what may be committed to the group: all below `position` is in the features."""
        self._applied[TP(topic, partition)] = position

    async def commit_now(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Commit to the group at once. False when the broker refuses, as it does for a stale generation."""
        wanted = {TP(*tp): offset for tp, offset in offsets.items()}
        if not wanted.keys() <= {TP(a.topic, a.partition) for a in self.assignment()}:
            return False  # a rebalance has begun; Faust would leave these out, and commit the rest
        if self.transport.app.should_stop:
            return False  # the thread that would do it may have ended already
        return bool(await self._commit(wanted))

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[TP]:
        acked = super()._filter_tps_with_pending_acks(topics)
        return [*self._applied, *(tp for tp in acked if tp.topic not in self.batch_topics)]

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic in self.batch_topics:
            return self._applied.get(tp)
        offset: int | None = super()._new_offset(tp)
        return offset

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's check looks at what aiokafka has fetched: of batch topics, nothing."""
        if tp.topic not in self.batch_topics:
            super().verify_event_path(now, tp)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], argument: Any) -> None:
    """Call in the loop's thread, unless the loop has ended meanwhile."""
    try:
        loop.call_soon_threadsafe(call, argument)
    except RuntimeError:
        if not loop.is_closed():
            raise


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


def credentials(settings: Settings) -> Any:
    """What Faust needs to talk to Kafka as the settings say; None = nothing."""
    protocol = settings.kafka_security_protocol
    context = None
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file or None)
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password,
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None
