from __future__ import annotations

import itertools
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.mix import SOURCES
from benchmarks.program import Program
from benchmarks.shop import product_name
from benchmarks.steady_sender import Sending
from feature_store.events import EVENT_CLASSES, CountedEvent
from worker.errors import LocalStackError
from worker.local_stack import LocalBroker

PATIENCE_S = 60.0
PARTITIONS = 2
_numbers = itertools.count()


def sending_to(broker: LocalBroker, path: Path) -> Sending:
    """A sending to new topics."""
    topics = {source: f"sender{next(_numbers)}.{source}" for source in SOURCES}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in topics.values()]).values():
        future.result()
    config: dict[str, str | int] = {"bootstrap.servers": broker.bootstrap_servers}
    return Sending(config, topics, PARTITIONS, items=50, rate=2000, seconds=0.5, seed=1, path=str(path))


def read(broker: LocalBroker, topics: dict[str, str], count: int) -> dict[tuple[str, int, int], CountedEvent]:
    """Events of all topics by (source, partition, offset)."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader"})
    consumer.assign([TopicPartition(t, p, OFFSET_BEGINNING) for t in topics.values() for p in range(PARTITIONS)])
    source_of = {topic: source for source, topic in topics.items()}
    found: dict[tuple[str, int, int], CountedEvent] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} of {count} events came"
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            source = source_of[message.topic()]
            event = msgspec.json.decode(message.value(), type=EVENT_CLASSES[source])
            assert isinstance(event, CountedEvent)
            found[source, message.partition(), message.offset()] = event
    consumer.close()
    return found


def test_events_stand_where_the_sender_says_with_the_time_at_which_they_left(
    broker: LocalBroker, tmp_path: Path
) -> None:
    sending = sending_to(broker, tmp_path / "sent.npz")
    before_ms = time.time_ns() // 1_000_000
    sender = Program(tmp_path, "benchmarks.steady_sender", [msgspec.json.encode(sending).decode()])
    sender.launch()
    try:
        sender.wait_for("sent", True, PATIENCE_S)
    finally:
        sender.kill()
    after_ms = time.time_ns() // 1_000_000
    sent = np.load(sending.path)
    assert len(sent["clock_s"]) == 1000
    assert (np.diff(sent["clock_s"]) >= 0).all()
    found = read(broker, sending.topics, 1000)
    # The same product has the same partition in each topic, so the first record of the product tells which.
    partition_of = {event.product_id: partition for (_, partition, _), event in found.items()}
    columns = (sent["item"].tolist(), sent["source"].tolist(), sent["offset"].tolist())
    last_ms = before_ms
    for item, source, offset in zip(*columns, strict=True):
        event = found[SOURCES[source], partition_of[product_name(item)], offset]
        assert event.product_id == product_name(item)
        assert last_ms <= event.event_time <= after_ms
        last_ms = event.event_time
    shares = np.bincount(sent["source"], minlength=3) / 1000
    assert np.allclose(shares, [0.2, 0.7, 0.1], atol=0.05)


def test_a_sender_whose_broker_is_away_fails_and_says_so(tmp_path: Path) -> None:
    config: dict[str, str | int] = {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500, "log_level": 0}
    topics = {source: source for source in SOURCES}
    away = Sending(
        config, topics, PARTITIONS, items=50, rate=2000, seconds=0.01, seed=1, path=str(tmp_path / "sent.npz")
    )
    sender = Program(tmp_path, "benchmarks.steady_sender", [msgspec.json.encode(away).decode()])
    sender.launch()
    with pytest.raises(LocalStackError, match="Kafka did not take 20 events"):
        sender.wait_for("sent", True, PATIENCE_S)
    sender.kill()
