"""RecordFetcher against the real broker; and at the seam to librdkafka what the embedded broker can't do: forget."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from worker import record_fetcher
from worker.errors import TopicError
from worker.local_stack import LocalBroker
from worker.record_fetcher import RecordBatch, RecordFetcher

PATIENCE_S = 60.0


class Reader:
    """A fetcher, what it has passed on, and what it has failed with."""

    def __init__(self, config: Mapping[str, Any], **options: Any) -> None:
        self._batches: queue.Queue[RecordBatch] = queue.Queue()
        self.errors: queue.Queue[Exception] = queue.Queue()
        self.fetcher = RecordFetcher(
            {"group.id": "test", "log_level": 2, "fetch.wait.max.ms": 10, **config},
            self._arrive,
            self.errors.put,
            **options,
        )
        self.fetcher.start()

    def _arrive(self, batches: Sequence[RecordBatch]) -> None:
        for batch in batches:
            self._batches.put(batch)

    def batch(self) -> RecordBatch:
        return self._batches.get(timeout=PATIENCE_S)

    def values(self, count: int, *, taken: bool = True) -> list[bytes | None]:
        """That many values, in the order they came."""
        out: list[bytes | None] = []
        while len(out) < count:
            batch = self.batch()
            out += batch.records.values
            if taken:
                self.fetcher.taken(batch)
        return out

    def unread(self) -> int:
        return self._batches.qsize()


@pytest.fixture
def new_reader() -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def new(config: Mapping[str, Any], **options: Any) -> Reader:
        readers.append(Reader(config, **options))
        return readers[-1]

    yield new
    for reader in readers:
        reader.fetcher.stop()


def make_topic(broker: LocalBroker, name: str, values: Sequence[bytes | None], partitions: int = 1) -> dict[str, str]:
    """A topic with the values in each partition. Returns how to reach the broker."""
    config = {"bootstrap.servers": broker.address, "log_level": 2}
    admin = AdminClient(config)  # kept: its end would end its futures
    for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        future.result(timeout=PATIENCE_S)
    producer = Producer(config)
    for partition in range(partitions):
        for value in values:
            while len(producer) > 50_000:
                producer.poll(0.1)
            producer.produce(name, value, b"key", partition=partition)
    assert producer.flush(PATIENCE_S) == 0
    return {"bootstrap.servers": broker.address}


def test_records_come_in_whole_batches_from_the_offset_asked_for(
    broker: LocalBroker, new_reader: Callable[..., Reader]
) -> None:
    sent = [f"v{n}".encode() for n in range(3000)]
    reader = new_reader(make_topic(broker, "fetch-from", sent))
    reader.fetcher.read_from("fetch-from", 0, 1000, epoch=1)
    first = reader.batch()
    reader.fetcher.taken(first)
    assert (first.topic, first.partition, first.epoch, first.records.start) == ("fetch-from", 0, 1, 1000)
    assert list(first.records.offsets) == list(range(1000, 1000 + len(first.records)))
    assert [*first.records.values, *reader.values(2000 - len(first.records))] == sent[1000:]


def test_null_values_keys_timestamps_and_headers_come_along(
    broker: LocalBroker, new_reader: Callable[..., Reader]
) -> None:
    config = make_topic(broker, "fetch-nulls", [])
    producer = Producer({**config, "log_level": 2})
    producer.produce("fetch-nulls", None, b"mug", partition=0, timestamp=1_700_000_000_123, headers=[("h", b"1")])
    producer.produce("fetch-nulls", b"x", None, partition=0)
    assert producer.flush(PATIENCE_S) == 0
    reader = new_reader(config)
    reader.fetcher.read_from("fetch-nulls", 0, None, epoch=1)
    records = [reader.batch().records]
    while sum(map(len, records)) < 2:
        records.append(reader.batch().records)
    assert [v for r in records for v in r.values] == [None, b"x"]
    assert [k for r in records for k in r.keys] == [b"mug", None]
    assert (records[0].timestamp_ms(0), records[0].headers(0)) == (1_700_000_000_123, [("h", b"1")])


def test_reading_anew_gives_another_epoch_and_nothing_of_the_old_one_after_it(
    broker: LocalBroker, new_reader: Callable[..., Reader]
) -> None:
    sent = [f"v{n}".encode() for n in range(2000)]
    reader = new_reader(make_topic(broker, "fetch-anew", sent))
    reader.fetcher.read_from("fetch-anew", 0, 0, epoch=1)
    reader.batch()
    reader.fetcher.read_from("fetch-anew", 0, 500, epoch=2)
    while (batch := reader.batch()).epoch == 1:
        pass
    assert (batch.epoch, batch.records.start, batch.records.offsets[0]) == (2, 500, 500)
    reader.fetcher.taken(batch)
    assert [*batch.records.values, *reader.values(1500 - len(batch.records))] == sent[500:]


def test_a_partition_that_nobody_takes_is_paused_and_holds_up_no_other(
    broker: LocalBroker, new_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_fetcher, "_MOST_AT_ONCE", 100)
    monkeypatch.setattr(record_fetcher, "_MOST_AHEAD_EACH", 200_000)
    sent = [b"%06d" % n + b"x" * 994 for n in range(5000)]
    reader = new_reader(make_topic(broker, "fetch-slow", sent, partitions=2))
    for partition in (0, 1):
        reader.fetcher.read_from("fetch-slow", partition, 0, epoch=1)
    held, read = [], 0
    while read < len(sent):  # partition 1 to its end, while nothing of partition 0 is taken
        batch = reader.batch()
        if batch.partition == 0:
            held.append(batch)
        else:
            read += len(batch.records)
            reader.fetcher.taken(batch)
    waiting = sum(len(batch.records) for batch in held)
    assert waiting * 1300 <= 200_000 + 100 * 1300, "what is on its way is bounded"
    for batch in held:
        reader.fetcher.taken(batch)
    assert [v for b in held for v in b.records.values] + reader.values(len(sent) - waiting) == sent


@pytest.mark.parametrize("name", ["paused", "paused-and-left"])
def test_a_paused_partition_that_is_read_anew_is_paused_no_longer(
    broker: LocalBroker, new_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(record_fetcher, "_MOST_AT_ONCE", 100)
    monkeypatch.setattr(record_fetcher, "_MOST_AHEAD_EACH", 200_000)
    reader = new_reader(make_topic(broker, name, [bytes(1000)] * 2000))
    reader.fetcher.read_from(name, 0, None, epoch=1)
    waiting = 0
    while waiting <= 200_000:  # nothing is taken: now it is paused
        waiting += reader.batch().size_bytes
    if name == "paused-and-left":
        reader.fetcher.leave_all()
    reader.fetcher.read_from(name, 0, 1990, epoch=2)
    while (batch := reader.batch()).epoch == 1:
        pass
    assert batch.records.start == 1990


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class ScriptedConsumer:
    """Stands in for librdkafka's consumer: hands out what a test has put, and tells the log's ends the test has set."""

    def __init__(self, log: tuple[int, int]) -> None:
        self.log = log
        self.coming: queue.Queue[Message] = queue.Queue()
        self.read_from: list[int] = []

    def poll(self, seconds: float) -> Message | None:
        try:
            return self.coming.get(timeout=seconds)
        except queue.Empty:
            return None

    def consume(self, count: int, timeout: float) -> list[Message]:
        return [self.coming.get() for _ in range(min(count, self.coming.qsize()))]

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        return self.log

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.read_from += [partition.offset for partition in partitions]

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None: ...

    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...

    def close(self) -> None: ...

    def put(self, offset: int, error: KafkaError | None = None) -> None:
        self.coming.put(Message(topic="t", partition=0, offset=offset, value=b"v", error=error))


def scripted(new_reader: Callable[..., Reader], log: tuple[int, int], position: int) -> tuple[Reader, ScriptedConsumer]:
    consumer = ScriptedConsumer(log)
    reader = new_reader({}, new_consumer=lambda _: consumer)
    reader.fetcher.read_from("t", 0, position, epoch=1)
    wait_until(lambda: consumer.read_from == [position])
    return reader, consumer


def test_offsets_that_kafka_has_deleted_are_told_with_their_extent(new_reader: Callable[..., Reader]) -> None:
    reader, consumer = scripted(new_reader, (900, 2000), position=40)
    consumer.put(40, KafkaError(KafkaError.OFFSET_OUT_OF_RANGE))
    wait_until(lambda: consumer.read_from == [40, 900])
    consumer.put(900)
    records = reader.batch().records
    assert (records.start, records.log_start, list(records.offsets)) == (40, 900, [900])


def test_a_hole_in_the_log_is_not_taken_for_deleted_records(new_reader: Callable[..., Reader]) -> None:
    reader, consumer = scripted(new_reader, (0, 2000), position=40)
    consumer.put(43)
    records = reader.batch().records
    assert (records.start, records.log_start, list(records.offsets)) == (40, 0, [43])


def test_a_topic_that_was_created_anew_stops_the_reader_with_the_remedy(new_reader: Callable[..., Reader]) -> None:
    reader, consumer = scripted(new_reader, (0, 12), position=40)
    consumer.put(40, KafkaError(KafkaError._AUTO_OFFSET_RESET))
    error = reader.errors.get(timeout=PATIENCE_S)
    assert isinstance(error, TopicError)
    assert "ends at offset 12" in str(error)
    assert "namespace" in str(error)


def test_an_error_that_does_not_pass_stops_the_reader(new_reader: Callable[..., Reader]) -> None:
    reader, consumer = scripted(new_reader, (0, 12), position=4)
    consumer.put(4, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert "TOPIC_AUTHORIZATION_FAILED" in repr(reader.errors.get(timeout=PATIENCE_S))


def test_an_error_that_passes_is_told_apart_and_reading_goes_on(
    new_reader: Callable[..., Reader], caplog: pytest.LogCaptureFixture
) -> None:
    reader, consumer = scripted(new_reader, (0, 2000), position=0)
    consumer.put(0, KafkaError(KafkaError._TRANSPORT))
    consumer.put(0)
    assert list(reader.batch().records.offsets) == [0]
    assert [record.name for record in caplog.records] == ["worker.record_fetcher.passing"]
