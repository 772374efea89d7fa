"""ReplenishmentStream: reads forecasts and stock, and writes orders to a topic of its own, each once.

Brokers that know no transactions must do, so what makes it once is the order of things:

1. Before a partition is read on, all that stands in it is taken again: the newest forecast and stock of each item up to
   the committed offsets, as dealt with; and the orders that stand in the output topic, by their ids.
2. What came after the commit is taken without ordering, then the present review is held once. (In a replay every review
   after the commit is held.)
3. Orders are acknowledged by Kafka before the offsets are committed that they were made of. A process that is killed in
   between leaves orders that its successor reads in step 1: it finds their ids there and does not send them again.

A process that is frozen, loses its partitions and goes on before it notices may send an order that its successor has
sent: with the same id. Consumers keep the first of an id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from worker import metrics
from worker.errors import TopicError
from worker.replenishment import Reviews
from worker.replenishment_records import (
    BadRecordError,
    Entry,
    Merge,
    MisplacedRecordError,
    Reader,
    decode_order,
    in_order,
)
from worker.schemas import Replenishment
from worker.topic_reading import Span, TopicReading

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_AT_ONCE = 1_000
_COMMIT_S = 1.0
_SEND_S = 30.0
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


@dataclass(frozen=True)
class StreamPlan:
    """What is read and written.

    Attributes:
        config: librdkafka's, to reach the broker.
        sources: by topic what it carries: forecasts, stock, products.
        output: topic of orders.
        group: consumer group.
        session_timeout_s: after which Kafka gives the partitions of a silent member away.
        replaying: every review since the topics begin is held, not only those from now on.
        latest_ms: records of a later time are refused.
        partition_of: where a product's records belong.
    """

    config: Mapping[str, Any]
    sources: Mapping[str, str]
    output: str
    group: str
    session_timeout_s: float
    replaying: bool
    latest_ms: Callable[[], int]
    partition_of: Callable[[str], int]


@dataclass
class _Partition:
    """One that is read: `positions` are the next offsets whose records are not yet dealt with."""

    reviews: Reviews
    reader: Reader
    merge: Merge
    positions: dict[str, int]
    committed: dict[str, int] = field(default_factory=dict)


class ReplenishmentStream:
    """`new_reviews` makes the state of a partition of the orders that stand in its output. `on_orders` hears of every
    batch before it is sent."""

    def __init__(
        self,
        plan: StreamPlan,
        new_reviews: Callable[[list[Replenishment]], Reviews],
        on_orders: Callable[[Sequence[Replenishment]], None],
    ) -> None:
        self._plan = plan
        self._new_reviews = new_reviews
        self._on_orders = on_orders
        self._reading = TopicReading(plan.config)
        self._partitions: dict[int, _Partition] = {}
        self._failure: TopicError | None = None

    def dry_run(self, partitions: Sequence[int]) -> list[Replenishment]:
        """The orders that would be sent now; nothing is sent or committed."""
        consumer = Consumer(self._consumer_config())
        try:
            found = []
            for p in partitions:
                made, orders = self._restored(p, self._committed(consumer, [p]))
                del made
                found += orders
            return found
        finally:
            consumer.close()

    def run(self, is_stopped: Callable[[], bool], *, to_end: bool = False) -> None:
        """Read on and order until `is_stopped`; with `to_end` until all that stands in the topics is dealt with.

        Raises:
            TopicError: Kafka refuses, or does not acknowledge orders.
        """
        consumer = Consumer(self._consumer_config())
        producer = Producer(
            {
                **self._plan.config,
                "acks": "all",
                "enable.idempotence": False,  # not every broker has it; consumers know a second one by its id
                "message.timeout.ms": int(1000 * _SEND_S),
            }
        )
        consumer.subscribe(
            list(self._plan.sources),
            on_assign=lambda c, given: self._assigned(c, producer, given),
            on_revoke=self._revoked,
            on_lost=lambda c, taken: self._revoked(None, taken),
        )
        committed_s = time.monotonic()
        try:
            while not is_stopped():
                first = consumer.poll(_POLL_S)
                if self._failure is not None:
                    raise self._failure
                # `consume` alone would wait for all of them or for its whole time.
                self._take([first, *consumer.consume(_AT_ONCE, timeout=0)] if first is not None else [])
                sent = self._order(producer)
                if sent or time.monotonic() > committed_s + _COMMIT_S:
                    self._commit(consumer, self._partitions)
                    committed_s = time.monotonic()
                if to_end and self._partitions and all(p.merge.is_at_end for p in self._partitions.values()):
                    break
            self._commit(consumer, self._partitions)
        finally:
            consumer.close()

    def _consumer_config(self) -> dict[str, Any]:
        return {
            **self._plan.config,
            "group.id": self._plan.group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "range",  # the same partitions of all topics go to one member
            "session.timeout.ms": int(1000 * self._plan.session_timeout_s),
            "heartbeat.interval.ms": int(1000 * self._plan.session_timeout_s / 3),
            "fetch.queue.backoff.ms": 5,
        }

    def _assigned(self, consumer: Any, producer: Any, given: Sequence[TopicPartition]) -> None:
        """Take a partition's state up again before it is read on."""
        try:
            starts = []
            for p in sorted({one.partition for one in given}):
                self._partitions[p], orders = self._restored(p, self._committed(consumer, [p]))
                self._send(producer, p, orders)
                starts += [TopicPartition(t, p, offset) for t, offset in self._partitions[p].positions.items()]
            consumer.assign(starts)
        except TopicError as error:  # through librdkafka no exception passes
            self._failure = error

    def _revoked(self, consumer: Any, taken: Sequence[TopicPartition]) -> None:
        gone = {p: self._partitions.pop(p) for p in {one.partition for one in taken} if p in self._partitions}
        if consumer is not None:
            self._commit(consumer, gone)

    def _committed(self, consumer: Any, partitions: Sequence[int]) -> dict[tuple[str, int], int]:
        asked = [TopicPartition(topic, p) for topic in self._plan.sources for p in partitions]
        try:
            found = consumer.committed(asked, timeout=_SEND_S)
        except KafkaException as error:
            raise TopicError(f"Kafka does not tell the offsets of group {self._plan.group}: {error}") from error
        return {(one.topic, one.partition): max(one.offset, 0) for one in found}

    def _restored(self, p: int, committed: Mapping[tuple[str, int], int]) -> tuple[_Partition, list[Replenishment]]:
        """A partition as it was at its committed offsets, and further where this is no replay; and the orders of the
        present review that are still to be sent."""
        ordered = []
        is_there = p in self._reading.partitions(self._plan.output)  # a dry run does not make the topic
        for record in self._reading.read(self._plan.output, {p: Span(0)} if is_there else {}):
            try:
                ordered += [decode_order(record.value)] if record.value is not None else []
            except BadRecordError as error:
                self._refuse(self._plan.output, p, record.offset, error)
        part = _Partition(
            self._new_reviews(ordered),
            Reader(
                self._plan.sources, self._plan.latest_ms, lambda product_id: self._plan.partition_of(product_id) == p
            ),
            Merge(self._plan.sources),
            {topic: committed[topic, p] for topic in self._plan.sources},
        )
        before, after = [], []
        for topic in self._plan.sources:
            entries = self._entries(part, topic, p)
            before.append([entry for entry in entries if entry.offset < committed[topic, p]])
            after.append([entry for entry in entries if entry.offset >= committed[topic, p]])
        part.reviews.restore((e.take for e in in_order(before) if e.take is not None), are_reviewed=True)
        part.reviews.are_put_off = True
        if self._plan.replaying:
            return part, []
        part.reviews.restore((e.take for e in in_order(after) if e.take is not None), are_reviewed=False)
        for topic, entries in zip(self._plan.sources, after, strict=True):
            part.positions[topic] = max([part.positions[topic], *(entry.offset + 1 for entry in entries)])
        part.reviews.review_all()
        return part, part.reviews.orders()

    def _entries(self, part: _Partition, topic: str, p: int) -> list[Entry]:
        """All of a topic's partition; in a replay up to the committed offset, where it is read on."""
        stop = part.positions[topic] if self._plan.replaying else None
        entries = []
        for record in self._reading.read(topic, {p: Span(0, stop)}):
            entries += self._entry(part, topic, p, (record.offset, record.key, record.value))
        return entries

    def _entry(
        self, part: _Partition, topic: str, p: int, record: tuple[int, bytes | None, bytes | None]
    ) -> list[Entry]:
        try:
            return [part.reader.entry(topic, *record)]
        except MisplacedRecordError as error:
            raise TopicError(
                f"{topic} partition {p} offset {record[0]}: {error}, and so never meets its forecasts. Its producer "
                "needs the product_id as key and partitioner murmur2 (librdkafka: partitioner=murmur2_random)"
            ) from error
        except BadRecordError as error:
            self._refuse(topic, p, record[0], error)
            return []

    def _refuse(self, topic: str, p: int, offset: int, error: BadRecordError) -> None:
        metrics.REPLENISHMENT_REFUSED.labels(self._plan.sources.get(topic, "orders")).inc()
        _LOG.warning("%s partition %d offset %d is passed over: %s", topic, p, offset, error)

    def _take(self, messages: Sequence[Any]) -> None:
        for message in messages:
            part = self._partitions.get(message.partition())
            error = message.error()
            if error is not None and error.code() not in (*_PASSING, KafkaError._PARTITION_EOF):
                raise TopicError(f"{message.topic()} can't be read: {error.str()}")
            if part is None or (error is not None and error.code() in _PASSING):
                continue
            if error is not None:
                part.merge.at_end(message.topic())
                continue
            record = (message.offset(), message.key(), message.value())
            for entry in self._entry(part, message.topic(), message.partition(), record):
                part.merge.add(entry)

    def _order(self, producer: Any) -> int:
        """Deal with what is ready; returns how many orders were sent."""
        sent = 0
        for p, part in self._partitions.items():
            for entry in part.merge.ready():
                if entry.take is not None:
                    entry.take(part.reviews)
                part.positions[entry.topic] = entry.offset + 1
            sent += self._send(producer, p, part.reviews.orders())
        return sent

    def _send(self, producer: Any, p: int, orders: Sequence[Replenishment]) -> int:
        """Hand orders to Kafka, and wait until they are acknowledged."""
        failed: list[str] = []

        def heard(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error.str())

        if not orders:
            return 0
        self._on_orders(orders)
        for order in orders:
            producer.produce(
                self._plan.output,
                key=order.item_id.encode(),
                value=msgspec.json.encode(order),
                partition=p,
                timestamp=order.event_time,
                on_delivery=heard,
            )
        left = producer.flush(_SEND_S)
        if left or failed:
            raise TopicError(
                f"{self._plan.output}: {left + len(failed)} of {len(orders)} orders were not acknowledged "
                f"({failed[0] if failed else 'no answer'}). Nothing is lost: run the command again, it finds those "
                "that did arrive"
            )
        for order in orders:
            metrics.REPLENISHMENTS.labels(order.policy).inc()
        return len(orders)

    def _commit(self, consumer: Any, partitions: Mapping[int, _Partition]) -> None:
        offsets = []
        for p, part in partitions.items():
            changed = {t: at for t, at in part.positions.items() if at > part.committed.get(t, 0)}
            offsets += [TopicPartition(topic, p, at) for topic, at in changed.items()]
            part.committed |= changed
            for outcome, count in (
                ("ordered", part.reviews.reviews - part.reviews.covered),
                ("covered", part.reviews.covered),
            ):
                metrics.REPLENISHMENT_REVIEWS.labels(outcome).inc(count)
            part.reviews.reviews = part.reviews.covered = 0
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                # Who lost its partitions may not commit; whoever has them now begins at the last commit.
                _LOG.warning("offsets of group %s were not committed: %s", self._plan.group, error)
