"""The whole shop's calendar, read from the real broker: as it is now, and as it was at a moment of event time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from worker.global_calendar import GlobalCalendar
from worker.local_stack import LocalBroker

_numbers = itertools.count()


@pytest.fixture
def topic(broker: LocalBroker) -> str:
    name = f"calendar{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 2})
    admin.create_topics([NewTopic(name, 1)])[name].result()
    return name


@pytest.fixture
def calendar(broker: LocalBroker, topic: str) -> Iterator[GlobalCalendar]:
    config = {"bootstrap.servers": broker.bootstrap_servers, "log_level": 2, "fetch.wait.max.ms": 10}
    calendar = GlobalCalendar(config, topic)
    yield calendar
    calendar.stop()


def send(broker: LocalBroker, topic: str, *messages: tuple[str, int, bytes | None]) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 2})
    for key, timestamp_ms, value in messages:
        producer.produce(topic, value, key, timestamp=timestamp_ms)
    assert producer.flush(30) == 0


def event(name: str) -> bytes:
    entry = {"start_time": 0, "end_time": 1, "event_name": name}
    return msgspec.json.encode({"event_time": 50, "entries": [entry]})


async def test_forecasts_of_a_replay_see_what_was_known_before_their_cutoff(
    broker: LocalBroker, topic: str, calendar: GlobalCalendar
) -> None:
    def names_at(event_time_ms: int) -> list[str | None]:
        return [entry.event_name for entry in calendar.entries_at(event_time_ms)]

    # The third is due with the second: records of a partition never overtake.
    send(broker, topic, ("a", 100, event("one")), ("b", 300, event("two")), ("a", 200, event("three")))
    calendar.start()
    await calendar.wait_until_read(3)
    assert names_at(100) == []
    assert names_at(101) == names_at(300) == ["one"]
    assert names_at(301) == ["three", "two"] == [entry.event_name for entry in calendar.entries()]
    send(broker, topic, ("b", 400, None), ("c", 500, b"{"))
    await calendar.wait_until_read(5)
    assert names_at(400) == ["three", "two"]
    assert names_at(401) == names_at(501) == ["three"]
