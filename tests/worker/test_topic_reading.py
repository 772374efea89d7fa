"""A topic is read to its very end, however its records were batched."""

from __future__ import annotations

import itertools

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from worker.errors import TopicError
from worker.local_stack import LocalBroker
from worker.topic_reading import Span, TopicReading

_numbers = itertools.count()


@pytest.fixture
def topic(broker: LocalBroker) -> str:
    name = f"reading{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(name, 2, 1)])[name].result()
    return name


def send(broker: LocalBroker, topic: str, counts: list[int], partition: int) -> None:
    """Batches of so many records, numbered through."""
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 1000})
    numbers = itertools.count()
    for count in counts:
        for _ in range(count):
            producer.produce(topic, str(next(numbers)).encode(), None, partition, headers=[("h", None)])
        assert producer.flush(60) == 0


def reading(broker: LocalBroker) -> TopicReading:
    return TopicReading({"bootstrap.servers": broker.bootstrap_servers})


def test_everything_acknowledged_is_read_in_order(broker: LocalBroker, topic: str) -> None:
    send(broker, topic, [1, 50, 3, 2000], partition=0)
    send(broker, topic, [7], partition=1)
    records = list(reading(broker).read(topic, {0: Span(0), 1: Span(0)}))
    for partition, count in ((0, 2054), (1, 7)):
        found = [r for r in records if r.partition == partition]
        assert [r.offset for r in found] == list(range(count))
        assert [r.value for r in found] == [str(n).encode() for n in range(count)]
    assert {tuple(r.headers) for r in records} == {(("h", None),)}


def test_a_span_is_read_and_no_more(broker: LocalBroker, topic: str) -> None:
    send(broker, topic, [10, 10], partition=0)
    spans = {0: Span(5, 12), 1: Span(0)}
    assert [r.offset for r in reading(broker).read(topic, spans)] == list(range(5, 12))
    assert list(reading(broker).read(topic, {0: Span(5, 5)})) == []
    assert list(reading(broker).read(topic, {})) == []


def test_the_end_told_is_never_beyond_the_last_record(broker: LocalBroker, topic: str) -> None:
    assert reading(broker).bounds(topic, [0])[0] == (0, 0)
    for sent, count in ((1, 1), (21, 20)):
        send(broker, topic, [count], partition=0)
        first, end = reading(broker).bounds(topic, [0])[0]
        assert first == 0
        assert 0 < end <= sent


def test_a_topic_that_is_not_there_has_no_partitions(broker: LocalBroker, topic: str) -> None:
    assert reading(broker).partitions(topic) == [0, 1]
    assert reading(broker).partitions("no.such.topic") == []


def test_a_broker_that_is_away_is_told_with_the_remedy() -> None:
    away = TopicReading({"bootstrap.servers": "127.0.0.1:1", "log_level": 2}, patience_s=0.5)
    with pytest.raises(TopicError, match="SHELFCAST_KAFKA_BOOTSTRAP_SERVERS"):
        away.partitions("orders")
    with pytest.raises(TopicError, match="SHELFCAST_KAFKA_BOOTSTRAP_SERVERS"):
        away.bounds("orders", [0])
    with pytest.raises(TopicError, match="stopped answering"):
        list(away.read("orders", {0: Span(0)}))
