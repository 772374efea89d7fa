"""What a replay writes to a broker, read back with a plain consumer."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from feature_store.recording_files import Recording
from tests.end_to_end.recordings import (
    HOUR_MS,
    PARTITIONS,
    START_MS,
    Written,
    shop_records,
    topic_of,
    write_recording,
)
from tests.end_to_end.replay_process import ReplayProcess
from worker.errors import SettingsError, TopicError
from worker.local_stack import LocalBroker
from worker.replay import Replayed, ReplayPlan, command, run_replay
from worker.replay_topics import prepare_topics, replay_environment, replay_settings, replay_topics
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics, kafka_client_config, wanted_topics

_numbers = itertools.count()
_PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return write_recording(tmp_path_factory.mktemp("recording"), shop_records(products=20, hours=5, orders=400))


@pytest.fixture
def shop(broker: LocalBroker) -> Settings:
    return load_settings({"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})


@pytest.fixture
def prefix() -> str:
    return f"again{next(_numbers)}."


def replay(recording: Recording, shop: Settings, prefix: str, clock: bool = True, **plan: object) -> Replayed:
    settings = replay_settings(shop, recording, prefix, recording.topics)
    where = replay_topics(shop, recording, prefix, recording.topics, clock)
    return run_replay(ReplayPlan(recording, recording.topics, **plan), settings, where)  # type: ignore[arg-type]


def read(shop: Settings, *topics: str) -> dict[tuple[str, int], list[Message]]:
    """All that topics hold, by topic and partition."""
    config = kafka_client_config(shop) | {"group.id": "t", "enable.partition.eof": True, "fetch.wait.max.ms": 10}
    consumer = Consumer(config)
    counts = {topic: len(consumer.list_topics(topic, timeout=_PATIENCE_S).topics[topic].partitions) for topic in topics}
    found: dict[tuple[str, int], list[Message]] = {(topic, p): [] for topic in topics for p in range(counts[topic])}
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic, p in found])
    ended: set[tuple[str | None, int | None]] = set()
    while len(ended) < len(found):
        message = consumer.poll(_PATIENCE_S)
        assert message is not None
        if message.error() is None:
            found[message.topic() or "", message.partition() or 0].append(message)
        else:
            ended.add((message.topic(), message.partition()))
    consumer.close()
    return found


def assert_all_there(recording: Recording, shop: Settings, prefix: str) -> None:
    """Each partition holds its records in order, nothing added or left out."""
    by_place: dict[tuple[str, int], list[tuple[object, ...]]] = {}
    for topic in recording.topics:
        for columns in recording.columns(topic):
            rows = zip(columns.keys, columns.values, columns.timestamps_ms.tolist(), columns.headers, strict=True)
            by_place.setdefault((topic, columns.partition), []).extend(rows)
    found = read(shop, *(prefix + topic for topic in recording.topics))
    for (topic, partition), expected in by_place.items():
        messages = found[prefix + topic, partition]
        assert [(m.key(), m.value(), m.timestamp(), m.headers()) for m in messages] == [
            (key, value, (1, timestamp_ms), headers) for key, value, timestamp_ms, headers in expected
        ]
        assert [m.offset() for m in messages] == list(range(len(expected)))


def test_records_keep_partition_key_value_headers_timestamp_and_order(
    recording: Recording, shop: Settings, prefix: str
) -> None:
    done = replay(recording, shop, prefix)
    assert done.records == sum(recording.rows(topic) for topic in recording.topics) > 700
    assert_all_there(recording, shop, prefix)


def test_ticks_name_the_records_that_are_due(recording: Recording, shop: Settings, prefix: str) -> None:
    done = replay(recording, shop, prefix, tick_ms=30 * 60_000)
    due: dict[tuple[str, int], list[int]] = {}
    for topic in recording.topics:
        for columns in recording.columns(topic):
            due.setdefault((topic, columns.partition), []).extend(columns.timestamps_ms.tolist())
    due = {place: np.maximum.accumulate(times).tolist() for place, times in due.items()}
    for (_, partition), messages in read(shop, prefix + "shelfcast.clock.v1").items():
        ticks = [msgspec.json.decode(m.value() or b"") for m in messages]
        assert len(ticks) == done.ticks
        assert [tick["event_time"] for tick in ticks] == sorted({tick["event_time"] for tick in ticks})
        # The half hours and, five seconds after them, the closes of hours and days.
        assert {tick["event_time"] % HOUR_MS for tick in ticks} == {0, HOUR_MS // 2, 5000}
        for tick in ticks:
            expected = {
                prefix + topic: sum(time < tick["event_time"] for time in due.get((topic, p), []))
                for topic in recording.topics
                for p in [0 if topic == topic_of("calendar_global") else partition]
            }
            assert tick["next_offsets"] == {topic: offset for topic, offset in expected.items() if offset}
        assert all(ticks[-1]["next_offsets"][prefix + t] == len(due[t, p]) for t, p in due if p == partition)


def test_a_worker_accepts_the_topics(recording: Recording, shop: Settings, prefix: str) -> None:
    settings = replay_settings(shop, recording, prefix, recording.topics)
    where = replay_topics(shop, recording, prefix, recording.topics, clock=True)
    run_replay(ReplayPlan(recording, recording.topics), settings, where)
    assert ensure_topics(settings) == []


def test_a_replay_is_kept_apart_from_the_shop(recording: Recording, shop: Settings) -> None:
    settings = replay_settings(shop, recording, "again.", recording.topics)
    ours, theirs = {t.name for t in wanted_topics(settings)}, {t.name for t in wanted_topics(shop)}
    assert not ours & theirs
    assert settings.namespace != shop.namespace
    assert replay_settings(shop, recording, "", recording.topics).namespace != shop.namespace
    with pytest.raises(SettingsError, match="--prefix 'no name'"):
        replay_settings(shop, recording, "no name", recording.topics)
    environment = {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": shop.kafka_bootstrap_servers}
    assert load_settings(environment | replay_environment(settings, shop)) == settings


def test_a_replay_that_was_killed_goes_on_where_it_ended(recording: Recording, shop: Settings, prefix: str) -> None:
    # What a kill leaves: of each partition some of its first records, and of the clock other ticks than of the others.
    whole = replay(recording, shop, f"whole.{prefix}")
    settings = replay_settings(shop, recording, prefix, recording.topics)
    ensure_topics(settings)
    producer = Producer(kafka_client_config(shop))
    left = 0
    topics = [*recording.topics, "shelfcast.clock.v1"]
    for (topic, partition), messages in read(shop, *(f"whole.{prefix}{topic}" for topic in topics)).items():
        name = topic.removeprefix("whole.")
        for message in messages[: 7 * topics.index(name.removeprefix(prefix)) * partition]:
            is_tick = name.endswith("shelfcast.clock.v1")
            value = (message.value() or b"").replace(b"whole.", b"") if is_tick else message.value()
            options = {"timestamp": message.timestamp()[1], "headers": message.headers() or []}
            producer.produce(name, value, message.key(), partition, **options)
            left += not is_tick
    producer.flush()
    with pytest.raises(TopicError, match="--resume"):
        replay(recording, shop, prefix)
    resumed = replay(recording, shop, prefix, resume=True)
    assert left > 100
    assert resumed.records == whole.records - left
    assert_all_there(recording, shop, prefix)
    ticks = read(shop, prefix + "shelfcast.clock.v1")
    assert [len(messages) for messages in ticks.values()] == [whole.ticks] * PARTITIONS


def test_a_replay_process_killed_while_it_sends_goes_on_where_it_ended(
    broker: LocalBroker, shop: Settings, prefix: str, tmp_path: Path
) -> None:
    # Enough records for some to be on their way at any moment, and for most to be left at the kill.
    recording = write_recording(tmp_path / "recording", shop_records(products=20, hours=5, orders=4000))
    settings = replay_settings(shop, recording, prefix, recording.topics)
    prepare_topics(settings, replay_topics(shop, recording, prefix, recording.topics, clock=True), resume=False)
    environment = {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    options = ["--prefix", prefix, "--tick", "1m"]
    killed = ReplayProcess(tmp_path / "killed", recording.path, environment, *options, "--speed", str(5 * 3600 // 12))
    killed.launch()
    killed.kill_while_sending(shop, settings.topic_orders, 100)
    resumed = ReplayProcess(tmp_path / "resumed", recording.path, environment, *options, "--resume")
    resumed.launch()
    told = re.search(r"([\d,]+) records and ([\d,]+) ticks in", resumed.output())
    assert told is not None
    sent, ticks = (int(number.replace(",", "")) for number in told.groups())
    assert 0 < sent < sum(recording.rows(topic) for topic in recording.topics)
    assert_all_there(recording, shop, prefix)
    for messages in read(shop, settings.topic_clock).values():
        times = [msgspec.json.decode(m.value() or b"")["event_time"] for m in messages]
        assert times == sorted(set(times))
        assert len(times) == ticks > 5 * 60


def test_another_recording_is_not_gone_on_with(
    recording: Recording, shop: Settings, prefix: str, tmp_path: Path
) -> None:
    other = write_recording(tmp_path, [Written("orders", "mug", b"{}", START_MS)])
    replay(other, shop, prefix, clock=False)
    with pytest.raises(TopicError, match="another recording or with other options"):
        replay(recording, shop, prefix, clock=False, resume=True)


def test_the_recorded_topics_are_refused(shop: Settings, tmp_path: Path) -> None:
    records = [Written("orders", "mug", b"{}", START_MS)]
    recording = write_recording(tmp_path, records, source=f"other:9092,{shop.kafka_bootstrap_servers}")
    with pytest.raises(TopicError, match="is what was recorded"):
        replay(recording, shop, "")


def test_a_topic_with_other_partitions_is_refused(recording: Recording, shop: Settings, prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": shop.kafka_bootstrap_servers})
    admin.create_topics([NewTopic(prefix + topic_of("orders"), 7)])[prefix + topic_of("orders")].result()
    with pytest.raises(TopicError, match="has 7 partitions, the recording has 3"):
        replay(recording, shop, prefix)


def test_only_topics_with_the_same_partitions_can_be_worked_on(shop: Settings, recording: Recording) -> None:
    recording = Recording(
        recording.path, msgspec.json.decode(msgspec.json.encode(recording.manifest), type=type(recording.manifest))
    )
    recording.manifest.topics[topic_of("clicks")].partition_count = 4
    with pytest.raises(SettingsError, match=r"shop.clicks.v1: 4"):
        replay_settings(shop, recording, "x.", recording.topics)
    assert replay_settings(shop, recording, "x.", [topic_of("orders")]).partition_count == PARTITIONS


def test_a_part_of_the_time_can_be_replayed(recording: Recording, shop: Settings, prefix: str) -> None:
    from_ms, to_ms = START_MS + HOUR_MS, START_MS + 2 * HOUR_MS
    done = replay(recording, shop, prefix, from_ms=from_ms, to_ms=to_ms)
    due = Counter(bool(from_ms <= due < to_ms) for part in recording.merged() for due in part.due_ms.tolist())
    assert 0 < due[True] == done.records < due[True] + due[False]
    ticks = read(shop, prefix + "shelfcast.clock.v1")[prefix + "shelfcast.clock.v1", 0]
    assert msgspec.json.decode(ticks[-1].value() or b"")["event_time"] == to_ms


def test_the_command_replays_and_prints_the_workers_settings(recording: Recording, shop: Settings, prefix: str) -> None:
    environment = {"SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": shop.kafka_bootstrap_servers}
    environment["SHELFCAST_NAMESPACE"] = "not a name"
    options = [str(recording.path), "--prefix", prefix]
    refused = CliRunner().invoke(command, options, env=environment)
    assert "SHELFCAST_NAMESPACE" in str(refused.exception)
    environment["SHELFCAST_NAMESPACE"] = "mine"
    printed = CliRunner().invoke(command, [*options, "--print-environment"], env=environment)
    exported = [shlex.split(line) for line in printed.output.splitlines()]
    assert {word for word, _ in exported} == {"export"}
    settings = load_settings(environment | dict(variable.split("=", 1) for _, variable in exported))
    assert (settings.namespace, settings.clock, settings.partition_count) == (f"{prefix}mine", "event", PARTITIONS)
    assert settings.topic_orders == f"{prefix}shop.orders.v1"
    done = CliRunner().invoke(command, [*options, "--tick", "30m", "--topic", topic_of("orders")], env=environment)
    assert done.exit_code == 0, done.output
    assert f"{recording.rows(topic_of('orders')):,} records and " in done.output
    orders = read(shop, settings.topic_orders)
    assert sum(map(len, orders.values())) == recording.rows(topic_of("orders"))
    again = CliRunner().invoke(command, options, env=environment)
    assert "already holds records" in str(again.exception)
